"""The public operators on a GPU, at the sizes of training: against float64, in memory, and without waiting for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpn_kernels.backend import use_triton
from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss
from cpn_kernels.ops.cp_loss import reference as loss_reference
from cpn_kernels.ops.cp_triplet import cp_triplet
from cpn_kernels.ops.cp_triplet import reference as triplet_reference
from cpn_kernels.ops.dense_crf import AFFINITY_LABELS, dense_crf
from cpn_kernels.ops.pixel_correlation import pixel_correlation
from cpn_kernels.ops.pixel_correlation import reference as correlation_reference
from cpn_kernels.ops.random_walk import random_walk
from cpn_kernels.ops.random_walk import reference as walk_reference

pytestmark = pytest.mark.gpu


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


def test_cuda_tensors_take_the_kernels() -> None:
    assert use_triton(draw(0, 2), None)
    assert not use_triton(draw(0, 2).double()) and not use_triton(draw(0, 2).cpu())


def eager(embedding: Tensor, maps: Tensor) -> Tensor:
    unit = F.normalize(embedding, dim=1)
    affinity = (unit.transpose(1, 2) @ unit).relu()
    return maps @ affinity / (affinity.sum(dim=1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("pixels", [3136, 3137])
def test_pixel_correlation_errs_no_more_than_twice_eager(pixels: int) -> None:
    embedding, maps = draw(1, 2, 192, pixels), draw(2, 2, 21, pixels).relu()
    weights = draw(3, 2, 21, pixels)
    for dtype in (torch.float32, torch.bfloat16):
        g, m = embedding.to(dtype), maps.to(dtype)
        exact = g.double().requires_grad_()
        law = correlation_reference.pixel_correlation(exact, m.double())
        law_gradient = torch.autograd.grad(law, exact, weights.double())[0]
        errors = []
        for form in (pixel_correlation, eager):
            leaf = g.clone().requires_grad_()
            output = form(leaf, m)
            gradient = torch.autograd.grad(output, leaf, weights.to(output.dtype))[0]
            errors.append(
                [float((a.double() - b).norm() / b.norm()) for a, b in ((output, law), (gradient, law_gradient))]
            )
        # tf32x3 keeps a little less than float32; its products are not compared with cuBLAS's below 1e-5.
        assert all(ours <= max(2 * theirs, 1e-5) for ours, theirs in zip(*errors, strict=True)), errors


def test_pixel_correlation_makes_no_square_matrix() -> None:
    pixels = 20_000
    embedding, maps = draw(1, 1, 192, pixels).requires_grad_(), draw(2, 1, 21, pixels)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pixel_correlation(embedding, maps).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < pixels * pixels // 8


def test_cp_triplet_equals_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 448, 448, 3), generator=generator, dtype=torch.uint8)
    patches = torch.randint(-1, 300, (16, 448, 448), generator=generator, dtype=torch.int32)
    keys = torch.randint(-(2**62), 2**62, (16,), generator=generator)
    expected, share = triplet_reference.cp_triplet(images, patches, keys, 0.5)
    for layout in (torch.channels_last, torch.contiguous_format):
        triplet, visible = cp_triplet(images.cuda(), patches.cuda(), keys.cuda(), 0.5, memory_format=layout)
        torch.testing.assert_close(triplet.cpu(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(triplet.cpu() == 0, expected == 0)
        torch.testing.assert_close(visible.cpu(), share, rtol=0, atol=1e-7)


def test_cp_triplet_past_two_to_the_31_elements() -> None:
    count, side = 1200, 448
    assert 9 * count * side * side > 2**31
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8).cuda()
    patches = torch.arange(side, dtype=torch.int16).cuda().view(1, side, 1).expand(1, side, side)
    keys = torch.arange(count).cuda()
    triplet, visible = cp_triplet(
        image.expand(count, -1, -1, -1), patches.expand(count, -1, -1), keys, 0.5, dtype=torch.bfloat16
    )
    for place in (0, count - 1):
        alone, share = cp_triplet(image, patches, keys[place : place + 1], 0.5, dtype=torch.bfloat16)
        assert torch.equal(triplet[place::count], alone) and torch.equal(visible[place], share[0])


@pytest.mark.parametrize(("height", "width", "steps"), [(47, 63, 64), (94, 125, 256)])
def test_random_walk_against_float64(height: int, width: int, steps: int, request: pytest.FixtureRequest) -> None:
    affinity, maps = draw(1, 2, 34, height, width).sigmoid(), draw(2, 2, 21, height, width).sigmoid()
    assert use_triton(affinity, maps)
    random_walk(affinity, maps, 1)  # compiles and loads the kernel, for which the host may wait
    request.getfixturevalue("no_sync")
    found = random_walk(affinity, maps, steps)
    torch.cuda.set_sync_debug_mode("default")
    law = walk_reference.random_walk(walk_reference.raised(affinity.double(), 8), maps.double(), steps)
    torch.testing.assert_close(found.double(), law, rtol=0, atol=1e-5)


def test_random_walk_past_two_to_the_31_elements() -> None:
    count, height, width = 21_500, 47, 63
    assert count * 34 * height * width > 2**31
    affinity, maps = draw(1, 1, 34, height, width).sigmoid(), draw(2, 1, 1, height, width)
    alone = random_walk(affinity, maps, 2, power=1)
    scale = torch.arange(count, device="cuda").remainder(5).add(1).view(-1, 1, 1, 1)
    found = random_walk(affinity.expand(count, -1, -1, -1), maps * scale, 2, power=1)
    for place in (0, count // 2, count - 1):
        torch.testing.assert_close(found[place], alone[0] * scale[place], rtol=1e-5, atol=1e-6)


def smooth_image(height: int, width: int, kind: str) -> Tensor:
    """uint8 [1, H, W, 3]: smooth colours with noise, noise alone, or one colour."""
    if kind == "flat":
        return torch.full((1, height, width, 3), 77, dtype=torch.uint8, device="cuda")
    noise = draw(4, 1, 3, height, width)
    if kind == "smooth":
        noise = 2 * F.interpolate(draw(5, 1, 3, 8, 8), (height, width), mode="bicubic") + 0.1 * noise
    return (120 + 60 * noise).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("kind", ["smooth", "noise", "flat"])
def test_dense_crf_against_float64(kind: str) -> None:
    image = smooth_image(375, 500, kind)
    probabilities = F.interpolate(2 * draw(6, 1, 21, 47, 63), (375, 500), mode="bilinear").softmax(1)
    law = dense_crf(image, probabilities.double(), **asdict(AFFINITY_LABELS))
    found = dense_crf(image, probabilities, **asdict(AFFINITY_LABELS))
    torch.testing.assert_close(found.double(), law, atol=1e-5, rtol=0)
    assert (found.argmax(1) == law.argmax(1)).float().mean() >= 0.9995
    for _ in range(3):
        assert torch.equal(dense_crf(image, probabilities, **asdict(AFFINITY_LABELS)), found)


def test_dense_crf_past_two_to_the_31_elements() -> None:
    """Two classes that matter, alone and first of 256, the others next to nothing: pixel rows pass 2^31 numbers."""
    if torch.cuda.get_device_properties(0).total_memory < 70 * 2**30:
        pytest.skip("needs a GPU of 70 GiB")
    height, width = 2050, 4100
    assert 256 * height * width > 2**31
    image = smooth_image(height, width, "smooth")
    two = draw(7, 1, 2, height, width).mul(2).softmax(1)
    options: dict[str, Any] = {"iterations": 2, "bilateral_compat": 0, "clip": 1e-30}
    expected = dense_crf(image, two, **options)
    found = dense_crf(image, F.pad(two, (0, 0, 0, 0, 0, 254)), **options)[:, :2]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [20, 80])
@pytest.mark.parametrize("size", [None, (448, 448)])
@pytest.mark.parametrize("tcp_target", ["pair", "image"])
def test_cp_loss_against_float64(
    classes: int, size: tuple[int, int] | None, tcp_target: Literal["pair", "image"]
) -> None:
    cam, rcam = draw(1, 12, classes, 56, 56), draw(2, 12, classes, 56, 56)
    labels = (torch.rand(4, classes, generator=torch.Generator().manual_seed(3)) < 0.2).float().cuda()
    visible = torch.tensor([0.3, 0.5, 0.6, 0.0]).cuda()
    options = CpLossOptions(tcp_target=tcp_target, refined_pair_gradient=True)
    exact = [x.double().requires_grad_() for x in (cam, rcam)]
    law = loss_reference.cp_loss(*exact, labels, visible.double(), options, size)
    leaves = [x.clone().requires_grad_() for x in (cam, rcam)]
    losses = cp_loss(*leaves, labels, visible, options, size=size)
    for ours, theirs in zip(losses, law, strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    gradients = torch.autograd.grad(sum(losses), leaves)
    expected = torch.autograd.grad(sum(law), exact)
    # Errors within rounding of the threshold, and differences within rounding of 0, may fall on the other side.
    for ours, theirs in zip(gradients, expected, strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 1e-2


def test_the_same_input_gives_the_same_bits() -> None:
    cam, rcam = draw(1, 12, 20, 56, 56).requires_grad_(), draw(2, 12, 20, 56, 56).requires_grad_()
    labels, visible = torch.ones(4, 20).cuda(), torch.full((4,), 0.4).cuda()
    runs = []
    for _ in range(3):
        losses = cp_loss(cam, rcam, labels, visible, size=(224, 224))
        runs.append([*losses, *torch.autograd.grad(sum(losses), (cam, rcam))])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("form", ["eager", "aot_eager"])
@pytest.mark.parametrize("resolution", ["cam", "input"])
def test_a_training_step_never_waits(
    form: str, resolution: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from cpn_fast.config.training import MethodOptions, TrainConfig
    from cpn_fast.methods import create_method
    from cpn_fast.models import create_model

    options = MethodOptions(loss_resolution=resolution)  # type: ignore[arg-type]
    config = TrainConfig(data="demo:", output=tmp_path, method="cpn", backbone="resnet38_tiny", options=options)
    method = create_method(config, create_model(config, 3)).cuda()
    step = torch.compile(method, fullgraph=True, backend="aot_eager") if form == "aot_eager" else method
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8).cuda()
    patches = (torch.arange(64 * 64) // 256).view(1, 64, 64).int().expand(2, 64, 64).contiguous().cuda()
    labels, keys = torch.tensor([[1.0, 0, 1], [0, 1, 0]]).cuda(), torch.arange(2).cuda()

    def one() -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = step(images, patches, keys, labels)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    one()  # compiles kernels, which may wait
    request.getfixturevalue("no_sync")
    loss = one()
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
