"""Pixel correlation, forward and backward: block by block (GPU: the kernels) against forms that keep the N x N matrix.

At a training step's sizes: 4 images, the CAM grids of 448 x 448 at strides 16 and 8, 21 classes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import device_ms, matmul_tflops, peak_tflops
from cpn_kernels.ops.pixel_correlation import pixel_correlation, reference

EMBEDDING, CLASSES = 192, 21
TOLERANCE = 1e-4
"""Of the relative difference of float32 outputs and gradients."""

SAME = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""A peer's error against float64 up to which it computes the same thing; bfloat16 rounds every affinity."""

Form = Callable[[Tensor, Tensor], Tensor]


def eager(embedding: Tensor, maps: Tensor) -> Tensor:
    """Plain torch, as the equations read."""
    unit = F.normalize(embedding, dim=1)
    affinity = F.relu(unit.transpose(1, 2) @ unit)
    affinity = affinity / (affinity.sum(dim=1, keepdim=True) + 1e-5)
    return maps @ affinity


def flex(embedding: Tensor, maps: Tensor) -> Tensor:
    """FlexAttention: the softmax of log(relu(s)) is relu(s) over its sum."""
    from torch.nn.attention.flex_attention import flex_attention

    def log_relu(score: Tensor, *_: Tensor) -> Tensor:
        return torch.where(score > 0, torch.log(score.clamp(min=1e-30)), -float("inf"))

    unit = F.normalize(embedding, dim=1).transpose(1, 2)[:, None]
    # Its kernels take no value of 21 channels on every version; 32 they do, and the tiles are that wide anyhow.
    values = F.pad(maps, (0, 0, 0, 32 - maps.shape[1])).transpose(1, 2)[:, None]
    output = flex_attention(unit, unit, values.to(unit.dtype), score_mod=log_relu, scale=1.0)
    return output[:, 0, :, : maps.shape[1]].transpose(1, 2)


PEERS: dict[str, Callable[[], Form]] = {
    "eager": lambda: eager,
    "compiled": lambda: torch.compile(eager, dynamic=False),
    "flex": lambda: torch.compile(flex, dynamic=False),
}


class Problem:
    """Inputs of one size, and a forward and backward pass over them."""

    def __init__(self, batch: int, pixels: int, device: str, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(pixels)

        def draw(rows: int) -> Tensor:
            return torch.randn(batch, rows, pixels, generator=generator).to(device, dtype)

        # Some common part, as embeddings of ReLU maps have it: rows of a few positive affinities would be easy.
        self.embedding = (draw(EMBEDDING) + 0.5).requires_grad_()
        self.maps, self.weights = draw(CLASSES).relu(), draw(CLASSES)

    def forward(self, form: Form) -> Tensor:
        with torch.no_grad():
            return form(self.embedding, self.maps)

    def both(self, form: Form) -> tuple[Tensor, Tensor]:
        """Output and the embedding's gradient."""
        output = form(self.embedding, self.maps)
        (gradient,) = torch.autograd.grad(output, self.embedding, self.weights.to(output.dtype))
        return output.detach(), gradient

    def exact(self) -> list[Tensor]:
        """The law in float64, image by image: [output, gradient]."""
        outputs, gradients = [], []
        for image in range(len(self.maps)):
            leaf = self.embedding[image : image + 1].detach().double().requires_grad_()
            output = reference.pixel_correlation(leaf, self.maps[image : image + 1].double())
            gradients += torch.autograd.grad(output, leaf, self.weights[image : image + 1].double())
            outputs.append(output.detach())
        return [torch.cat(outputs), torch.cat(gradients)]

    def check(self, candidate: Form, peer: Form) -> None:
        for ours, theirs in zip(self.both(candidate), self.both(peer), strict=True):
            assert error(ours, theirs) <= TOLERANCE

    def check_against_law(self, candidate: Form, peer: Form) -> dict[str, float]:
        """Errors against float64, relative: the candidate's are at most twice eager torch's, the peer's are small."""
        parts = zip(self.both(candidate), self.both(eager), self.both(peer), self.exact(), strict=True)
        found = {}
        for name, (ours, rounded, theirs, law) in zip(("output", "gradient"), parts, strict=True):
            found[f"{name}_error"], found[f"peer_{name}_error"] = error(ours, law), error(theirs, law)
            assert found[f"{name}_error"] <= max(2 * error(rounded, law), 1e-5)
            assert found[f"peer_{name}_error"] <= SAME[self.embedding.dtype]
        return found


def error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("pixels", [784, 3136])
@pytest.mark.parametrize("peer", ["eager", "compiled"])
def test_correlation_in_blocks(peer: str, pixels: int, against: Callable[..., float]) -> None:
    problem, form = Problem(4, pixels, "cpu"), PEERS[peer]()
    against(
        candidate=lambda: problem.both(pixel_correlation),
        peer=lambda: problem.both(form),
        agree=lambda: problem.check(pixel_correlation, form),
        items=4,
    )


CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("benchmark", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from benchmarks.measuring import extra_peak_mib
from cpn_fast.device import tune_allocator
tune_allocator()
form = {"candidate": module.pixel_correlation, "peer": module.eager}[sys.argv[2]]
module.Problem(1, 64, "cpu").both(form)  # what the first call loads
problem = module.Problem(1, int(sys.argv[3]), "cpu")
print(extra_peak_mib(lambda: problem.both(form), "cpu"))
"""


def peak_in_a_child(form: str, pixels: int) -> float:
    """Extra peak memory in MiB of a forward and backward pass over one image: median of three fresh processes."""
    return statistics.median(_one_child(form, pixels) for _ in range(3))


def _one_child(form: str, pixels: int) -> float:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, __file__, form, str(pixels)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    return float(child.stdout.split()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")
def test_correlation_memory_at_four_times_the_pixels(keep: Callable[..., None]) -> None:
    """It grows with N: at most 4.5 times as much at 4N, where keeping the matrix takes about 16 times as much."""
    small, large = (peak_in_a_child("candidate", pixels) for pixels in (3136, 12544))
    peers = [peak_in_a_child("peer", pixels) for pixels in (784, 3136)]
    keep(
        candidate_mib_at_3136=small,
        candidate_mib_at_12544=large,
        candidate_growth=large / small,
        peer_mib_at_784=peers[0],
        peer_mib_at_3136=peers[1],
        peer_growth=peers[1] / peers[0],
    )
    assert peers[1] > 3136**2 * 4 / 2**20, "the measurement does not see an N x N matrix"
    assert large <= 4.5 * small


def flops(batch: int, pixels: int, backward: bool) -> float:
    """Multiplications and additions that the sums need: the affinity's recomputation is work, so it counts."""
    pairs = batch * pixels**2
    forward = 2 * pairs * (EMBEDDING + CLASSES)
    return forward + (2 * pairs * (2 * EMBEDDING + 2 * CLASSES) if backward else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("batch", "pixels"), [(12, 784), (12, 3136), (2, 11000)])
@pytest.mark.parametrize("peer", list(PEERS))
def test_correlation_kernel(
    peer: str,
    batch: int,
    pixels: int,
    dtype: torch.dtype,
    against: Callable[..., float],
    keep: Callable[..., None],
) -> None:
    """float32 products are tf32 nowhere here; FlexAttention multiplies bfloat16 only where its inputs are."""
    torch.set_float32_matmul_precision("highest")
    problem, form = Problem(batch, pixels, "cuda", dtype), PEERS[peer]()
    if peer == "flex":
        try:
            found = problem.both(form)
        except Exception as reason:  # whatever its compiler says
            pytest.skip(f"flex_attention does not do it here: {type(reason).__name__}: {str(reason).splitlines()[0]}")
        off = max(error(x, law) for x, law in zip(found, problem.exact(), strict=True))
        if not off <= SAME[dtype]:  # as compiled for a CPU by torch 2.13, where its plain form is right
            pytest.skip(f"flex_attention's result is off by {off:.2g} here: no figure beside it")
    against(
        candidate=lambda: problem.both(pixel_correlation),
        peer=lambda: problem.both(form),
        agree=lambda: keep(**problem.check_against_law(pixel_correlation, form)),
        items=batch,
        calls=20 if pixels < 4000 else 5,
    )
    forward_ms = device_ms(lambda: problem.forward(pixel_correlation))
    keep(
        forward_ms=forward_ms,
        peer_forward_ms=device_ms(lambda: problem.forward(form)),
        forward_tflops=flops(batch, pixels, False) / forward_ms / 1e9,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("pixels", [3136, 11000])
def test_correlation_kernel_rate(pixels: int, keep: Callable[..., None]) -> None:
    """TFLOP/s of bf16 beside the device's peak and beside a plain matrix product of now."""
    batch = 12 if pixels < 4000 else 2
    problem = Problem(batch, pixels, "cuda", torch.bfloat16)
    figures: dict[str, Any] = {"matmul_tflops": matmul_tflops()}
    parts = {"forward": problem.forward, "both": problem.both}
    for name, call in parts.items():
        milliseconds = device_ms(lambda call=call: call(pixel_correlation))
        figures[f"{name}_device_ms"] = milliseconds
        figures[f"{name}_tflops"] = flops(batch, pixels, name == "both") / milliseconds / 1e9
        if (peak := peak_tflops()) is not None:
            figures[f"{name}_share_of_peak"] = figures[f"{name}_tflops"] / peak
    keep(**figures, **problem.check_against_law(pixel_correlation, eager))
