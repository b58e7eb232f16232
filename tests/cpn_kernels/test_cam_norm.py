"""CAM normalisation against hand-computed cases and a float64 loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cpn_kernels.cam_norm import channel_peak, normalise_cam, normalise_on_scale_of, winner_mask, with_background


def loop_normalise(raw: Tensor, labels: Tensor, map_norm: str, floor: Tensor | None = None) -> Tensor:
    """Section 2 of the method, one number at a time."""
    batch, classes, _, width = raw.shape
    out = torch.zeros(raw.shape, dtype=torch.float64)
    for b, c in itertools.product(range(batch), range(classes)):
        values = [max(v, 0.0) for v in raw[b, c].double().flatten().tolist()]
        low, high = min(values), max(values)
        if labels[b, c] == 0 or high < 1e-2:
            continue
        scale = high if floor is None else max(high, float(floor[b, c]))
        for i, value in enumerate(values):
            if map_norm == "minmax":
                normalised = max(value - low - 1e-5, 0.0) / (scale - low + 1e-5)
            else:
                normalised = value / (scale + 1e-5)
            out[b, c, i // width, i % width] = normalised
    return out


def tie_free(*shape: int, seed: int = 0) -> Tensor:
    """Distinct numbers in (-1, 2), none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    return (torch.randperm(count, generator=generator).double().add(0.5) / count * 3 - 1).reshape(shape)


def test_hand_computed() -> None:
    raw = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]], dtype=torch.float64)
    labels = torch.ones(1, 1)
    low, middle, high = (1 - 1e-5) / (3 + 1e-5), (2 - 1e-5) / (3 + 1e-5), (3 - 1e-5) / (3 + 1e-5)
    expected = torch.tensor([[[[0, low], [middle, high]]]], dtype=torch.float64)
    torch.testing.assert_close(normalise_cam(raw, labels), expected, rtol=0, atol=1e-15)
    expected = torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.float64) / (3 + 1e-5)
    torch.testing.assert_close(normalise_cam(raw, labels, "max"), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("map_norm", ["minmax", "max"])
@pytest.mark.parametrize("shared", [False, True])
def test_against_loop(map_norm: str, shared: bool) -> None:
    raw = tie_free(3, 4, 5, 6)
    raw[0, 1] += 2  # all positive: the minimum counts
    labels = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    floor = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 4 if shared else None
    ours = normalise_cam(raw, labels, map_norm, floor)
    torch.testing.assert_close(ours, loop_normalise(raw, labels, map_norm, floor), rtol=0, atol=1e-14)
    assert (ours[labels == 0] == 0).all()


def test_floor_below_the_own_maximum_changes_nothing() -> None:
    raw, labels = tie_free(2, 3, 4, 4), torch.ones(2, 3)
    own = channel_peak(raw)
    assert torch.equal(normalise_cam(raw, labels, floor=own), normalise_cam(raw, labels))
    assert torch.equal(own, raw.clamp(min=0).flatten(2).max(dim=2).values)
    # Twice the maximum halves a map whose minimum is 0.
    halved = normalise_cam(raw, labels, "max", 2 * own + 1e-5)
    torch.testing.assert_close(halved, normalise_cam(raw, labels, "max") / 2)


@pytest.mark.parametrize("map_norm", ["minmax", "max"])
def test_weak_channels_are_zero_without_gradient(map_norm: str) -> None:
    raw = torch.zeros(1, 4, 3, 3)
    raw[0, 0, 1, 1] = 0.00999
    raw[0, 1, 1, 1] = 0.0101
    raw[0, 2] = -1.0
    raw.requires_grad_()
    maps = normalise_cam(raw, torch.ones(1, 4), map_norm)
    assert [bool((maps[0, c] != 0).any()) for c in range(4)] == [False, True, False, False]
    gradient = torch.autograd.grad((maps * torch.arange(36.0).view_as(maps)).sum(), raw)[0]
    assert torch.isfinite(gradient).all()
    assert (gradient[0, [0, 2, 3]] == 0).all()


@pytest.mark.parametrize("map_norm", ["minmax", "max"])
def test_nan_stays_visible(map_norm: str) -> None:
    raw = tie_free(2, 2, 3, 3)
    raw[0, 1, 1, 1] = float("nan")
    normalised = normalise_cam(raw, torch.tensor([[1, 1], [1, 1]]), map_norm=map_norm)
    assert normalised[0, 1].isnan().all() and normalised[0, 0].isfinite().all() and normalised[1].isfinite().all()
    absent = normalise_cam(raw, torch.tensor([[1, 0], [1, 1]]), map_norm=map_norm)
    assert (absent[0, 1] == 0).all()


def test_constant_map() -> None:
    raw = torch.full((1, 1, 3, 3), 2.0, requires_grad=True)
    minmax = normalise_cam(raw, torch.ones(1, 1))
    assert (minmax == 0).all()
    assert (torch.autograd.grad(minmax.sum(), raw)[0] == 0).all()
    torch.testing.assert_close(normalise_cam(raw, torch.ones(1, 1), "max"), torch.full((1, 1, 3, 3), 2 / (2 + 1e-5)))


def test_gradient_is_shared_among_ties() -> None:
    # max norm, Y = R / (m + eps); d sum(Y) / d m = -sum(R) / (m + eps)^2, halved between the two maxima.
    raw = torch.tensor([[[[2.0, 2.0], [1.0, 0.5]]]], dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(normalise_cam(raw, torch.ones(1, 1), "max").sum(), raw)[0].flatten()
    peak = 2 + 1e-5
    at_peak = 1 / peak - 0.5 * 5.5 / peak**2
    expected = torch.tensor([at_peak, at_peak, 1 / peak, 1 / peak], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("map_norm", ["minmax", "max"])
def test_gradcheck(map_norm: str) -> None:
    raw = tie_free(2, 3, 3, 4).requires_grad_()
    labels = torch.tensor([[1, 0, 1], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda r: normalise_cam(r, labels, map_norm), raw)
    gradient = torch.autograd.grad(normalise_cam(raw, labels, map_norm).square().sum(), raw)[0]
    assert (gradient[0, 1] == 0).all()


@pytest.mark.parametrize("map_norm", ["minmax", "max"])
def test_on_the_scale_of_another_map(map_norm: str) -> None:
    raw, scale, labels = tie_free(2, 3, 3, 4), tie_free(2, 3, 5, 2, seed=1) / 2, torch.tensor([[1, 0, 1], [1, 1, 1]])
    scale[1, 0] = -1.0  # its own maximum is judged: nothing there
    scale.requires_grad_()
    found = normalise_on_scale_of(raw, scale, labels, map_norm)  # type: ignore[arg-type]
    for b, c in itertools.product(range(2), range(3)):
        low, high = (float(f(scale[b, c].clamp(min=0))) for f in (torch.min, torch.max))
        positive = raw[b, c].clamp(min=0)
        if labels[b, c] == 0 or high < 1e-2:
            expected = torch.zeros_like(positive)
        elif map_norm == "max":
            expected = positive / (high + 1e-5)
        else:
            expected = (positive - low - 1e-5).clamp(min=0) / (high - low + 1e-5)
        torch.testing.assert_close(found[b, c], expected, rtol=1e-12, atol=1e-15)
    assert found.amax() > 1 and not found.requires_grad


def test_background_and_winner() -> None:
    maps = torch.tensor([[[[0.2, 0.0, 0.5]], [[0.7, 0.0, 0.5]]]])
    full = with_background(maps)
    torch.testing.assert_close(full[0, 0], torch.tensor([[0.3, 1.0, 0.5]]))
    assert torch.equal(full[:, 1:], maps)
    expected = torch.tensor([[[[1.0, 1, 1]], [[0.0, 1, 1]], [[1.0, 0, 0]]]])  # equal classes: the first
    assert torch.equal(winner_mask(full), expected)


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'l2'.*'minmax' or 'max'"):
        normalise_cam(torch.zeros(1, 1, 2, 2), torch.ones(1, 1), "l2")  # type: ignore[arg-type]
