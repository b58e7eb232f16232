"""The bootstrap against a naive loop, against SciPy's, and against what resampling cannot change."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cpn_fast.metrics import bootstrap
from cpn_fast.metrics.beta_sweep import BETAS, BetaSweep
from cpn_fast.metrics.bootstrap import compare_best, compare_halves, image_weights, miou, resampled_miou
from cpn_fast.metrics.image_counts import ImageCounts

K = 2


def counts_of(seed: int, noise: float, images: int = 12) -> ImageCounts:
    """Counts of maps that are the true mask, blurred by noise; the same masks whatever the seed."""
    masks, rng = np.random.default_rng(9), np.random.default_rng(seed)
    sweep = BetaSweep(K, keep_images=True)
    for _ in range(images):
        mask = masks.integers(0, K + 1, (6, 7)).astype(np.uint8)
        maps = np.stack([(mask == c + 1) * 0.6 for c in range(K)]) + noise * rng.random((K, 6, 7))
        sweep.update(maps.clip(0, 1).astype(np.float32), mask)
    return ImageCounts.of(sweep.per_image, K)


def naive_miou(tallies: np.ndarray) -> float:
    right, predicted, true = tallies.sum(axis=0).tolist()
    values = [r / (p + t - r) for r, p, t in zip(right, predicted, true, strict=True) if p + t - r > 0]
    return sum(values) / len(values)


def test_resampled_miou_against_a_loop() -> None:
    tallies = counts_of(0, 0.6).tallies(40, K)
    weights = image_weights(12, 600, np.random.default_rng(3))
    assert (weights.sum(axis=1) == 12).all() and weights.std() > 0.5
    found = resampled_miou(tallies, weights)
    for resample in range(0, 600, 37):
        drawn = np.repeat(np.arange(12), weights[resample])
        assert found[resample] == pytest.approx(naive_miou(tallies[drawn]), rel=1e-12)
    assert bootstrap.BLOCK < 600  # more than one block


def test_a_class_in_no_image_of_a_resample_is_left_out_of_its_mean() -> None:
    tallies = np.array([[[4, 0, 0], [4, 0, 0], [4, 0, 0]], [[0, 2, 0], [1, 3, 0], [0, 4, 0]]])
    assert miou(tallies.sum(axis=0)) == pytest.approx((4 / 5 + 2 / 5) / 2)
    assert resampled_miou(tallies, np.array([[2, 0]]))[0] == 1.0


def test_interval_against_scipy() -> None:
    first, second = counts_of(0, 0.9, 60), counts_of(1, 0.6, 60)
    found = compare_halves([first], [second], K, 4000, seed=1)
    odd = np.arange(60) % 2 == 1
    at = [bootstrap.best_index(counts, K, ~odd) for counts in (first, second)]
    left, right = first.tallies(at[0], K)[odd], second.tallies(at[1], K)[odd]
    result = stats.bootstrap(
        (np.arange(30),), lambda i: naive_miou(right[i]) - naive_miou(left[i]), vectorized=False, method="percentile",
        n_resamples=4000, random_state=2,
    )  # fmt: skip
    width = result.confidence_interval.high - result.confidence_interval.low
    assert found.images == 30
    assert found.difference.value == pytest.approx(naive_miou(right) - naive_miou(left), rel=1e-12)
    assert found.difference.low == pytest.approx(result.confidence_interval.low, abs=0.08 * width)
    assert found.difference.high == pytest.approx(result.confidence_interval.high, abs=0.08 * width)
    assert found.difference.low > 0  # less noise is better


def test_beta_is_chosen_on_even_images_and_reported_on_odd_ones() -> None:
    counts = counts_of(0, 0.8)
    found = compare_halves([counts], [counts], K, 50, seed=0)
    even = [naive_miou(counts.tallies(index, K)[::2]) for index in range(len(BETAS))]
    index = int(np.argmax(even))
    assert found.betas == ((index / 100,), (index / 100,))
    assert found.first.value == pytest.approx(naive_miou(counts.tallies(index, K)[1::2]), rel=1e-12)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)  # paired


def test_the_papers_way_takes_each_resamples_best_beta() -> None:
    first, second = counts_of(0, 0.9), counts_of(1, 0.7)
    found = compare_best([first], [second], K, 40, seed=5)
    every = [[counts.tallies(index, K) for index in range(len(BETAS))] for counts in (first, second)]
    assert found.first.value == pytest.approx(max(map(naive_miou, every[0])), rel=1e-12)
    assert found.images == 12
    weights = image_weights(12, 40, np.random.default_rng(5))
    differences = []
    for row in weights:
        drawn = np.repeat(np.arange(12), row)
        best = [max(naive_miou(tallies[drawn]) for tallies in betas) for betas in every]
        differences.append(best[1] - best[0])
    low, high = np.percentile(differences, (2.5, 97.5))
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), rel=1e-9)


def test_seeds_are_resampled_too_and_equal_numbers_are_pairs() -> None:
    runs = [counts_of(seed, 0.5 + 0.2 * seed) for seed in range(3)]
    same = compare_halves(runs, runs, K, 200, seed=0)
    assert (same.difference.low, same.difference.high) == (0, 0)
    alone = compare_halves(runs[:1], runs[:1], K, 200, seed=0)
    assert same.first.high - same.first.low > 1.3 * (alone.first.high - alone.first.low)
    even = [compare_halves([run], [run], K, 2, seed=0).first.value for run in runs]
    assert same.first.value == pytest.approx(np.mean(even), rel=1e-12)
    uneven = compare_halves(runs, runs[:2], K, 200, seed=0)
    assert uneven.difference.low < 0 < uneven.difference.high
