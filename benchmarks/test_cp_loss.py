"""The losses of the complementary pair, value and gradient: the operator against eager torch with topk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.measuring import device_ms, seconds
from benchmarks.peers import losses as peers
from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss

CLASSES = 20
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Result = tuple[Tensor, ...]

TARGETS = ["image", "pair"]
SIZES = {"28": (28, None), "56": (56, None), "56-to-448": (56, (448, 448))}
"""Side of the CAM grid, and the size to which maps are upsampled."""


def problem(batch: int, side: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raw maps [3B, K, side, side], smooth as those of a network, labels and visible fractions."""
    generator = torch.Generator().manual_seed(side)

    def maps() -> Tensor:
        coarse = torch.randn(3 * batch, CLASSES, 7, 7, generator=generator)
        return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").to(device).requires_grad_()

    labels = torch.zeros(batch, CLASSES)
    for image in range(batch):  # one to four classes, as photographs have
        labels[image, torch.randperm(CLASSES, generator=generator)[: 1 + image % 4]] = 1
    return maps(), maps(), labels.to(device), torch.linspace(0.3, 0.7, batch, device=device)


def options(target: str) -> CpLossOptions:
    return CpLossOptions(tcp_target=target)  # type: ignore[arg-type]


def value_and_gradient(loss: Loss, cam: Tensor, rcam: Tensor) -> Result:
    parts = loss(cam, rcam)
    gradients = torch.autograd.grad(parts[0] + parts[1], (cam, rcam))
    return (*(part.detach() for part in parts), *gradients)


def check_equal(ours: Result, theirs: Result) -> None:
    """Values to 1e-5; gradients as a whole to 1e-2: an element at the threshold, or a difference of 0, may fall on
    the other side by rounding."""
    for found, expected in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    for found, expected in zip(ours[2:], theirs[2:], strict=True):
        assert float(expected.norm()) > 0
        assert float((found - expected).norm() / expected.norm()) < 1e-2


def forms(
    batch: int, side: int, size: tuple[int, int] | None, target: str, device: str
) -> tuple[Loss, Loss, Tensor, Tensor]:
    """Candidate, peer and their maps."""
    cam, rcam, labels, visible = problem(batch, side, device)

    def candidate(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return cp_loss(a, b, labels, visible, options(target), size=size)

    def peer(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return peers.cp_loss(a, b, labels, visible, target, size)

    return candidate, peer, cam, rcam


def compare(candidate: Loss, peer: Loss, cam: Tensor, rcam: Tensor, against: Callable[..., float], calls: int) -> float:
    def ours() -> Result:
        return value_and_gradient(candidate, cam, rcam)

    def theirs() -> Result:
        return value_and_gradient(peer, cam, rcam)

    return against(
        candidate=ours, peer=theirs, agree=lambda: check_equal(ours(), theirs()), items=len(cam) // 3, calls=calls
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", list(SIZES))
def test_losses_against_eager(name: str, target: str, against: Callable[..., float]) -> None:
    side, size = SIZES[name]
    batch = 4 if size is None else 2
    compare(*forms(batch, side, size, target, "cpu"), against, calls=4 if size is None else 1)


@pytest.mark.gpu
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("peer", ["eager", "compiled"])
def test_loss_kernel(
    peer: str, name: str, target: str, against: Callable[..., float], keep: Callable[..., None]
) -> None:
    """The compiled peer is our reference's arithmetic: the eager one's masks have sizes that are data."""
    side, size = SIZES[name]
    candidate, eager, cam, rcam = forms(4, side, size, target, "cuda")
    _, _, labels, visible = problem(4, side, "cuda")
    other = eager if peer == "eager" else compiled_reference(labels, visible, target, size)
    compare(candidate, other, cam, rcam, against, calls=20 if size is None else 5)
    keep(candidate_device_ms=device_ms(lambda: value_and_gradient(candidate, cam, rcam)))


def compiled_reference(labels: Tensor, visible: Tensor, target: str, size: tuple[int, int] | None) -> Loss:
    """torch.compile of the batched form in plain torch, whose sizes do not depend on the labels."""
    from cpn_kernels.ops.cp_loss import reference

    def loss(cam: Tensor, rcam: Tensor) -> tuple[Tensor, Tensor]:
        return reference.cp_loss(cam, rcam, labels, visible, options(target), size)

    return torch.compile(loss, fullgraph=True, dynamic=False)


@pytest.mark.gpu
@pytest.mark.parametrize("target", TARGETS)
def test_size_below_which_the_loss_kernel_loses(target: str, keep: Callable[..., None]) -> None:
    """Sides of the CAM grid at which the compiled form is faster than the kernel, each by wall time."""
    losing, ratios = 0, {}
    for side in (4, 8, 14, 28, 56, 112, 224):
        candidate, _, cam, rcam = forms(4, side, None, target, "cuda")
        _, _, labels, visible = problem(4, side, "cuda")
        other = compiled_reference(labels, visible, target, None)

        def run(form: Loss, maps: tuple[Tensor, Tensor] = (cam, rcam)) -> Result:
            return value_and_gradient(form, *maps)

        check_equal(run(candidate), run(other))
        times = [
            min(seconds(lambda form=form: run(form), "cuda", calls=10) for _ in range(5)) for form in (candidate, other)
        ]
        ratios[str(side)] = round(times[1] / times[0], 2)
        if ratios[str(side)] < 1:
            losing = side
    keep(loses_up_to_side=losing, compiled_over_kernel_by_side=ratios)
