"""Pixel correlation kernels against the law in float64: values, gradients, tails, degenerate and NaN vectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpn_kernels.ops.pixel_correlation import pixel_correlation
from cpn_kernels.ops.pixel_correlation.op import pixel_correlation_op

EPS = 1e-5


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rounded(x: Tensor, precision: str) -> Tensor:
    """`x` as the kernel's operand holds it; the gradient passes as if nothing were rounded."""
    return x + (x.detach().to(torch.bfloat16).double() - x.detach()) if precision == "bf16" else x


def law(embedding: Tensor, maps: Tensor, queries: Tensor | None, precision: str) -> Tensor:
    unit = rounded(F.normalize(embedding, dim=1), precision)
    asked = unit if queries is None else rounded(F.normalize(queries, dim=1), precision)
    affinity = (unit.transpose(1, 2) @ asked).relu()
    return rounded(maps, precision) @ affinity / (affinity.sum(1, keepdim=True) + EPS)


def compare(
    embedding: Tensor, maps: Tensor, queries: Tensor | None, precision: str, device: torch.device, atol: float
) -> None:
    """Outputs and all gradients, each against the float64 law and relative to the largest element."""
    exact = [None if x is None else x.double().requires_grad_() for x in (embedding, maps, queries)]
    ours = [None if x is None else x.float().to(device).requires_grad_() for x in (embedding, maps, queries)]
    expected = law(exact[0], exact[1], exact[2], precision)
    output, totals = pixel_correlation_op(ours[0], ours[2], ours[1], EPS, precision)
    assert output.dtype == torch.float32 and output.shape == expected.shape and not totals.requires_grad
    torch.testing.assert_close(output.cpu().double(), expected, rtol=0, atol=atol * float(maps.abs().max()))
    weights = draw(99, *expected.shape)
    theirs = torch.autograd.grad(expected, [x for x in exact if x is not None], weights)
    found = torch.autograd.grad(output, [x for x in ours if x is not None], weights.float().to(device))
    for ours_, theirs_ in zip(found, theirs, strict=True):
        scale = max(float(theirs_.abs().max()), 1e-2)
        torch.testing.assert_close(ours_.cpu().double() / scale, theirs_ / scale, rtol=0, atol=4 * atol)


SHAPES = [  # B, E, C, N, M: VOC's and COCO's channels, tails in every direction, one pixel, one channel
    (2, 192, 21, 130, None),
    (1, 256, 81, 65, None),
    (1, 6, 3, 64, None),
    (3, 70, 17, 33, 90),
    (1, 16, 128, 97, 1),
    (2, 1, 1, 1, None),
]


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 2e-6), ("bf16", 4e-3)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_law(shape: tuple, precision: str, atol: float, device: torch.device) -> None:
    batch, channels, classes, pixels, asked = shape
    queries = None if asked is None else draw(3, batch, channels, asked)
    compare(draw(1, batch, channels, pixels), draw(2, batch, classes, pixels), queries, precision, device, atol)


def test_only_what_is_asked_for_is_differentiated(device: torch.device) -> None:
    embedding = draw(1, 1, 8, 20).float().to(device).requires_grad_()
    output = pixel_correlation_op(embedding, None, draw(2, 1, 2, 20).float().to(device), EPS, "fp32")[0]
    output.sum().backward()  # the gradient arrives expanded from one number
    exact = embedding.detach().cpu().double().requires_grad_()
    law(exact, draw(2, 1, 2, 20).float().double(), None, "fp32").sum().backward()
    torch.testing.assert_close(embedding.grad.cpu().double(), exact.grad, rtol=0, atol=1e-6)


def test_any_memory_layout(device: torch.device) -> None:
    embedding, maps = draw(1, 2, 12, 50).float().to(device), draw(2, 2, 3, 50).float().to(device)
    expected = pixel_correlation_op(embedding, None, maps, EPS, "fp32")[0]
    last = embedding.transpose(1, 2).contiguous().transpose(1, 2)  # channels_last
    strided = torch.stack([maps, -maps], dim=3)[..., 0]
    assert torch.equal(pixel_correlation_op(last, None, strided, EPS, "fp32")[0], expected)
    doubled = torch.cat([embedding, embedding])[::2]  # every second image
    assert torch.equal(
        pixel_correlation_op(doubled, None, torch.cat([maps, maps])[::2], EPS, "fp32")[0][0], expected[0]
    )


def test_zero_and_tiny_vectors(device: torch.device) -> None:
    embedding, maps = draw(1, 1, 8, 40), draw(2, 1, 2, 40)
    embedding[:, :, 7] = 0
    embedding[:, :, 9] = 1e-15  # below the least length: scaled by 1e12
    embedding[:, :, 11] *= 1e-9
    exact, ours = embedding.clone().requires_grad_(), embedding.float().to(device).requires_grad_()
    expected = law(exact, maps, None, "fp32")
    output = pixel_correlation_op(ours, None, maps.float().to(device), EPS, "fp32")[0]
    assert (output[:, :, 7] == 0).all()
    torch.testing.assert_close(output.cpu().double(), expected, rtol=0, atol=2e-6)
    theirs = torch.autograd.grad(expected.square().sum(), exact)[0]
    found = torch.autograd.grad(output.square().sum(), ours)[0].cpu().double()
    for pixel in range(40):
        scale = float(theirs[..., pixel].abs().max()) + 1e-30
        torch.testing.assert_close(found[..., pixel] / scale, theirs[..., pixel] / scale, rtol=0, atol=2e-4)


def test_nothing_but_zeros_is_finite(device: torch.device) -> None:
    embedding = torch.zeros(1, 4, 5, device=device, requires_grad=True)
    output = pixel_correlation_op(embedding, None, torch.rand(1, 2, 5, device=device), EPS, "fp32")[0]
    assert (output == 0).all()
    assert (torch.autograd.grad(output.sum(), embedding)[0] == 0).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nan_stays_visible(precision: str, device: torch.device) -> None:
    embedding, maps = draw(1, 2, 8, 70).float().to(device), draw(2, 2, 3, 70).float().to(device)
    clean = pixel_correlation_op(embedding, None, maps, EPS, precision)[0]
    embedding[0, 3, 66] = float("nan")
    embedding.requires_grad_()
    output = pixel_correlation_op(embedding, None, maps, EPS, precision)[0]
    assert output[0].isnan().all() and torch.equal(output[1], clean[1])
    assert torch.autograd.grad(output.sum(), embedding)[0][0].isnan().any()
    maps[1, 2, 68] = float("nan")
    output = pixel_correlation_op(embedding.detach(), None, maps, EPS, precision)[0]
    assert output[1, 2].isnan().any() and torch.equal(output[1, :2], clean[1, :2])


@pytest.mark.parametrize("queried", [False, True])
def test_opcheck(queried: bool, device: torch.device) -> None:
    embedding = draw(1, 1, 8, 20).float().to(device).requires_grad_()
    maps = draw(2, 1, 2, 20).float().to(device).requires_grad_()
    queries = draw(3, 1, 8, 9).float().to(device).requires_grad_() if queried else None
    torch.library.opcheck(pixel_correlation_op, (embedding, queries, maps, EPS, "fp32"))


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("autocast", [False, True])
def test_public_function_compiles_whole(autocast: bool, device: torch.device) -> None:
    embedding, maps = draw(1, 1, 8, 40).float().to(device), draw(2, 1, 2, 40).float().to(device)
    embedding.requires_grad_()

    def refine(g: Tensor, m: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            return pixel_correlation(g, m)

    output = torch.compile(refine, fullgraph=True, backend="aot_eager")(embedding, maps)
    eager = pixel_correlation_op(embedding, None, maps, EPS, "bf16" if autocast else "fp32")[0]
    assert torch.equal(output, eager)
    ours, theirs = (torch.autograd.grad(x.square().sum(), embedding)[0] for x in (output, eager))
    assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("kernels_only")
def test_half_precision_embeddings(device: torch.device) -> None:
    embedding = draw(1, 1, 8, 40).bfloat16().to(device).requires_grad_()
    maps = draw(2, 1, 2, 40).float().to(device)
    output = pixel_correlation(embedding, maps)
    assert output.dtype == torch.float32
    expected = law(embedding.detach().cpu().double(), maps.cpu().double(), None, "bf16")
    torch.testing.assert_close(output.cpu().double(), expected, rtol=0, atol=4e-3)
    assert torch.autograd.grad(output.sum(), embedding)[0].dtype == torch.bfloat16
