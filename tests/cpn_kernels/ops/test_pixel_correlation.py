"""Pixel correlation: law against a float64 loop, blocked form against the law, exported form in onnxruntime."""

from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpn_kernels.ops.pixel_correlation import pixel_correlation, reference
from cpn_kernels.ops.pixel_correlation.portable import pixel_correlation_portable


def sample(batch: int, channels: int, pixels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(pixels)
    embedding = torch.randn(batch, 6, pixels, generator=generator, dtype=dtype)
    return embedding, torch.rand(batch, channels, pixels, generator=generator, dtype=dtype)


def loop_correlation(embedding: Tensor, maps: Tensor, eps: float = 1e-5) -> Tensor:
    """Section 4 of the method, one pixel pair at a time."""
    batch, channels, pixels = maps.shape
    out = torch.zeros_like(maps, dtype=torch.float64)
    for b, j in itertools.product(range(batch), range(pixels)):
        total, weighted = 0.0, [0.0] * channels
        for i in range(pixels):
            left, right = embedding[b, :, i].tolist(), embedding[b, :, j].tolist()
            dot = sum(x * y for x, y in zip(left, right, strict=True))
            affinity = max(dot / (math.hypot(*left) * math.hypot(*right)), 0.0)
            total += affinity
            weighted = [w + affinity * m for w, m in zip(weighted, maps[b, :, i].tolist(), strict=True)]
        out[b, :, j] = torch.tensor([w / (total + eps) for w in weighted], dtype=torch.float64)
    return out


def test_hand_computed() -> None:
    # Directions: pixels 0 and 1 are orthogonal, pixel 2 lies between them, pixel 3 opposes pixel 0.
    half = 0.5**0.5
    embedding = torch.tensor([[[1, 0, 3, -7], [0, 2, 3, 0]]], dtype=torch.float64)
    maps = torch.tensor([[[1.0, 0, 0, 0], [1, 1, 1, 1]]], dtype=torch.float64)
    expected = torch.tensor([[1 / (1 + half), 0, half / (1 + 2 * half), 0], [1, 1, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(pixel_correlation(embedding, maps, eps=0.0)[0], expected, rtol=0, atol=1e-15)


def test_law_against_loop() -> None:
    embedding, maps = sample(2, 3, 13)
    torch.testing.assert_close(
        reference.pixel_correlation(embedding, maps), loop_correlation(embedding, maps), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(("pixels", "block"), [(1, 4), (12, 4), (13, 4), (30, 64)])
def test_blocked_equals_law(pixels: int, block: int) -> None:
    embedding, maps = (x.requires_grad_() for x in sample(2, 3, pixels))
    law = reference.pixel_correlation(embedding, maps)
    blocked = reference.pixel_correlation_blocked(embedding, maps, block=block)
    torch.testing.assert_close(blocked, law, rtol=0, atol=1e-14)
    weights = torch.randn(law.shape, dtype=law.dtype, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad(blocked, (embedding, maps), weights)
    theirs = torch.autograd.grad(law, (embedding, maps), weights)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("blocked", [False, True])
def test_gradcheck(blocked: bool) -> None:
    embedding, maps = (x.requires_grad_() for x in sample(1, 2, 7))
    unit = F.normalize(embedding[0], dim=0)
    affinity = unit.T @ unit
    assert affinity.abs().min() > 1e-4  # no pair sits on the kink of relu
    if blocked:
        assert torch.autograd.gradcheck(
            lambda g, m: reference.pixel_correlation_blocked(g, m, block=3), (embedding, maps)
        )
    else:
        assert torch.autograd.gradcheck(pixel_correlation, (embedding, maps))


def test_public_function_agrees_with_the_law_on_both_sides_of_the_switch() -> None:
    for pixels in (reference.WHOLE, reference.WHOLE + 1):
        embedding, maps = sample(1, 2, pixels)
        embedding.requires_grad_()
        output, law = pixel_correlation(embedding, maps), reference.pixel_correlation(embedding, maps)
        torch.testing.assert_close(output, law, rtol=0, atol=1e-13)
        ours = torch.autograd.grad(output.square().sum(), embedding)[0]
        theirs = torch.autograd.grad(law.square().sum(), embedding)[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_degenerate_inputs_are_finite() -> None:
    embedding = torch.zeros(1, 4, 5, requires_grad=True)
    output = pixel_correlation(embedding, torch.rand(1, 2, 5))
    assert (output == 0).all()
    assert torch.isfinite(torch.autograd.grad(output.sum(), embedding)[0]).all()


def _peak_bytes(pixels: int) -> int:
    """Bytes of the largest set of tensors alive at once during a forward and backward, as torch's allocator counts."""
    embedding, maps = sample(1, 4, pixels, torch.float32)
    embedding.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        pixel_correlation(embedding, maps).square().sum().backward()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def test_memory_grows_with_the_pixels_not_their_square() -> None:
    small, large = _peak_bytes(1100), _peak_bytes(4400)
    assert small > 256 * 1100 * 4  # at least one affinity block was seen
    assert large <= 4.5 * small


def test_compiled_without_graph_breaks() -> None:
    embedding, maps = (x.requires_grad_() for x in sample(1, 2, reference.WHOLE + 8, torch.float32))
    compiled = torch.compile(pixel_correlation, fullgraph=True, backend="eager")
    ours, eager = compiled(embedding, maps), pixel_correlation(embedding, maps)
    torch.testing.assert_close(ours, eager)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), embedding), torch.autograd.grad(eager.square().sum(), embedding)
    )


def test_portable_equals_law() -> None:
    embedding, maps = sample(2, 3, 10)
    law = reference.pixel_correlation(embedding, maps)
    torch.testing.assert_close(pixel_correlation_portable(embedding, maps, block=4), law, rtol=0, atol=1e-14)


@pytest.mark.parametrize("asked", [1, 9, reference.BLOCK + 3])
def test_queries_that_are_no_keys(asked: int) -> None:
    embedding, maps = (x.requires_grad_() for x in sample(2, 3, 13))
    queries = sample(2, 1, asked)[0].requires_grad_()
    output = pixel_correlation(embedding, maps, queries=queries)
    unit, wanted = F.normalize(embedding, dim=1), F.normalize(queries, dim=1)
    affinity = torch.einsum("bei,bej->bij", unit, wanted).clamp(min=0)
    expected = torch.einsum("bci,bij->bcj", maps, affinity) / (affinity.sum(1, keepdim=True) + 1e-5)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    inputs = (embedding, maps, queries)
    ours, theirs = (torch.autograd.grad(x.square().sum(), inputs) for x in (output, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    portable = pixel_correlation_portable(embedding, maps, block=4, queries=queries)
    torch.testing.assert_close(portable, expected, rtol=0, atol=1e-13)


def test_mismatched_queries_are_named() -> None:
    with pytest.raises(ValueError, match=r"queries are \(1, 3, 5\).*\(1, 4, 5\)"):
        pixel_correlation(torch.zeros(1, 4, 5), torch.zeros(1, 2, 5), queries=torch.zeros(1, 3, 5))


class _Exported(torch.nn.Module):
    def forward(self, embedding: Tensor, maps: Tensor) -> Tensor:
        return pixel_correlation(embedding, maps)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("onnx") / "pixel_correlation.onnx"
    batch, pixels = torch.export.Dim("batch"), torch.export.Dim("pixels")
    program = torch.onnx.export(
        _Exported().eval(),
        sample(2, 3, 300, torch.float32),
        dynamo=True,
        dynamic_shapes=({0: batch, 2: pixels}, {0: batch, 2: pixels}),
        input_names=["embedding", "maps"],
        verbose=False,
    )
    assert program is not None
    program.save(path)
    return path


def _session(path: Path):  # type: ignore[no-untyped-def]
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_onnx_parity_at_any_size(exported: Path) -> None:
    session = _session(exported)
    for batch, pixels in ((1, 1), (1, 255), (3, 256), (2, 257), (1, 1111)):
        embedding, maps = sample(batch, 3, pixels, torch.float32)
        output = session.run(None, {"embedding": embedding.numpy(), "maps": maps.numpy()})[0]
        law = reference.pixel_correlation(embedding.double(), maps.double())
        torch.testing.assert_close(torch.from_numpy(output).double(), law, rtol=0, atol=1e-5)


def test_onnx_is_a_loop_without_an_n_by_n_matrix(exported: Path) -> None:
    onnx = pytest.importorskip("onnx")
    assert "Loop" in {node.op_type for node in onnx.load(exported).graph.node}
    session = _session(exported)
    _resident_growth(session, 1024)  # what the first run allocates once
    # The loop takes 256 x N floats (8 MB) at a time; the whole matrix would take 268 MB.
    assert _resident_growth(session, 8192) < 100e6


def _resident_growth(session, pixels: int) -> int:  # type: ignore[no-untyped-def]
    """Peak resident bytes above the start while the session runs, sampled from a second thread."""
    embedding, maps = sample(1, 3, pixels, torch.float32)
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("reads resident memory from /proc")
    feed = {"embedding": embedding.numpy(), "maps": maps.numpy()}
    start = peak = int(statm.read_text().split()[1]) * 4096
    runner = threading.Thread(target=session.run, args=(None, feed))
    runner.start()
    while runner.is_alive():
        peak = max(peak, int(statm.read_text().split()[1]) * 4096)
        runner.join(0.002)
    return peak - start


def test_autocast_and_half_precision() -> None:
    embedding, maps = sample(1, 2, reference.WHOLE + 8, torch.float32)
    law = reference.pixel_correlation(embedding, maps)
    halved = embedding.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = pixel_correlation(halved, maps)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, law, rtol=0.02, atol=0.02)
    gradient = torch.autograd.grad(output.square().sum(), halved)[0]
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_mismatched_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 5\).*\(1, 2, 6\).*differ in B or N"):
        pixel_correlation(torch.zeros(1, 4, 5), torch.zeros(1, 2, 6))


def test_pcm_is_that_of_the_released_code(released: dict[str, Tensor]) -> None:
    embedding = released["pcm_f9"].flatten(1) @ released["pcm_features"].flatten(2)
    found = pixel_correlation(embedding, released["pcm_winners"].flatten(2))
    # They add 1e-5 to the norm of an embedding before they divide by it.
    torch.testing.assert_close(found, released["pcm"].flatten(2), rtol=0, atol=1e-7)
