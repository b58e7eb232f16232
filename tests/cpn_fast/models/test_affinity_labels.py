"""Labels for AffinityNet against a loop over cells, and the powers against what they mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cpn_fast.models.affinity_labels import (
    affinity_labels,
    alpha_of_beta,
    background_exponents,
    with_background_exponent,
)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(4, 0.276), (6, 0.222), (16, 0.123), (24, 0.094), (32, 0.077)], ids=lambda x: str(x)
)
def test_powers_of_the_literature(alpha: float, beta: float) -> None:
    """The threshold is found by halving where y > (1 - y) ** alpha begins, and rounded as published."""
    below, above = 0.0, 1.0
    for _ in range(80):
        middle = (below + above) / 2
        below, above = (below, middle) if middle > (1 - middle) ** alpha else (middle, above)
    assert round(above, 3) == beta
    assert alpha_of_beta(above) == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.22, 0.5, 0.9])
def test_foreground_wins_above_the_score_alone(beta: float) -> None:
    scores = torch.linspace(0, 1, 1001, dtype=torch.float64).view(1, 1, 1, -1)
    maps = with_background_exponent(scores, alpha_of_beta(beta))
    assert maps.shape == (1, 2, 1, 1001)
    clear = (scores - beta).abs().flatten() > 1e-9
    assert torch.equal(maps.argmax(1).flatten()[clear], (scores.flatten() > beta).long()[clear])


def test_background_of_several_classes() -> None:
    foreground = torch.tensor([[0.1, 0.6], [0.5, 0.2]]).view(1, 2, 1, 2)
    maps = with_background_exponent(foreground, 3.0)
    torch.testing.assert_close(maps[0, 0, 0], torch.tensor([0.5**3, 0.4**3]))
    assert torch.equal(maps[:, 1:], foreground)


def test_powers_bracket_the_best_one() -> None:
    low, high = background_exponents(0.222)
    assert (round(low), round(high)) == (4, 24)
    assert background_exponents(0.1, low=0.5, high=2.0) == pytest.approx(
        (alpha_of_beta(0.1) / 2, alpha_of_beta(0.1) * 2)
    )
    for low_share, high_share in ((1.0, 4.0), (0.5, 1.0), (0.0, 2.0)):
        with pytest.raises(ValueError, match="bracket"):
            background_exponents(0.2, low_share, high_share)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, math.nan])
def test_a_score_that_has_no_power(beta: float) -> None:
    with pytest.raises(ValueError, match="beta is"):
        alpha_of_beta(beta)


def loop_labels(low: np.ndarray, high: np.ndarray, stride: int) -> np.ndarray:
    batch, _, height, width = low.shape
    labels = np.full((batch, math.ceil(height / stride), math.ceil(width / stride)), 255)
    for image, row, column in np.ndindex(*labels.shape):
        cell = np.s_[image, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
        means = [scores[cell].mean(axis=(1, 2)) for scores in (low, high)]
        if max(means[0].max(), means[1].max()) < 1e-5:
            continue
        if means[1].argmax() == 0:
            labels[image, row, column] = 0
        elif means[0].argmax() > 0:
            labels[image, row, column] = means[0].argmax()
    return labels


@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 22), (3, 9), (1, 1)])
def test_labels_against_a_loop(height: int, width: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(height)
    foreground = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64) ** 6
    low, high = (with_background_exponent(foreground, alpha) for alpha in (2.0, 12.0))
    low[0, :, :, width // 2 :] = high[0, :, :, width // 2 :] = 0  # padding
    found = affinity_labels(low, high, stride)
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), loop_labels(low.numpy(), high.numpy(), stride))
    if (height, width, stride) == (16, 24, 1):
        assert set(found.unique().tolist()) == {0, 1, 2, 3, 255}


def test_every_rule_by_hand() -> None:
    """One pixel per column: sure foreground, sure background, in doubt, contradiction, nothing known."""
    low = torch.tensor([[0.2, 0.9, 0.8, 0.1, 0.0], [0.1, 0.0, 0.1, 0.0, 0.0], [0.7, 0.1, 0.1, 0.9, 0.0]])
    high = torch.tensor([[0.1, 0.7, 0.1, 0.8, 0.0], [0.1, 0.2, 0.6, 0.1, 0.0], [0.8, 0.1, 0.3, 0.1, 0.0]])
    found = affinity_labels(low.view(1, 3, 1, 5), high.view(1, 3, 1, 5), 1)
    assert found.flatten().tolist() == [2, 0, 255, 0, 255]
    assert affinity_labels(low.view(1, 3, 1, 5), high.view(1, 3, 1, 5), 1, void=99).flatten().tolist()[4] == 99


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"high": torch.rand(1, 3, 4, 5)}, r"low is .*high is"),
        ({"low": torch.rand(1, 1, 4, 4), "high": torch.rand(1, 1, 4, 4)}, r"C >= 2"),
        ({"stride": 0}, r"stride is 0"),
        ({"void": 2}, r"void is 2.*no class"),
    ],
)
def test_bad_input_is_named(changed: dict, message: str) -> None:
    given = {"low": torch.rand(1, 3, 4, 4), "high": torch.rand(1, 3, 4, 4), "stride": 2} | changed
    with pytest.raises(ValueError, match=message):
        affinity_labels(**given)
