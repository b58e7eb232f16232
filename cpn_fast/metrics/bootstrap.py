"""Differences of mIoU with a paired bootstrap over images, and over seeds where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpn_fast.metrics.beta_sweep import BETAS
from cpn_fast.metrics.image_counts import ImageCounts

INTERVAL = (2.5, 97.5)
"""Percentiles of the stated interval: 95%."""

BLOCK = 256
"""Resamples that are summed together."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval over resamples; mIoU and differences in 0..1."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: NDArray[np.float64]) -> Estimate:
        """With the percentile interval of the resampled values."""
        low, high = np.percentile(resampled, INTERVAL)
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs on the same images.

    Attributes:
        first: mIoU of the first group, the mean of its runs.
        second: the same of the second.
        difference: second - first, resampled together.
        images: how many images it is reported on.
        betas: background score of every run of the first group, and of the second.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    images: int
    betas: tuple[tuple[float, ...], tuple[float, ...]]


def miou(tallies: NDArray[np.floating | np.int64]) -> NDArray[np.float64]:
    """Mean IoU [...] of summed tallies [..., 3, C]; classes neither true nor predicted are left out of each mean."""
    right, predicted, true = (tallies[..., part, :].astype(np.float64) for part in range(3))
    union = predicted + true - right
    known = union > 0
    iou = np.divide(right, union, out=np.zeros_like(union), where=known)
    return iou.sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)


def image_weights(images: int, resamples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """How often each image occurs in each resample, int64 [resamples, images]."""
    return generator.multinomial(images, np.full(images, 1 / images), size=resamples)


def resampled_miou(tallies: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """mIoU of every resample.

    Args:
        tallies: int64 [n, 3, C].
        weights: int64 [R, n].

    Returns:
        float64 [R].
    """
    flat = tallies.reshape(len(tallies), -1).astype(np.float64)
    blocks = (weights[start : start + BLOCK] @ flat for start in range(0, len(weights), BLOCK))
    return np.concatenate([miou(block.reshape(-1, *tallies.shape[1:])) for block in blocks])


def best_index(counts: ImageCounts, num_classes: int, chosen: NDArray[np.bool_]) -> int:
    """Index of the beta with the highest mIoU on the chosen images, the lowest on a tie; 0 for masks that were read."""
    if not counts.has_beta:
        return 0
    return int(np.argmax([miou(counts.tallies(index, num_classes)[chosen].sum(axis=0)) for index in range(len(BETAS))]))


def seed_choices(
    first: int, second: int, resamples: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which runs each resample takes of two groups, int64 [R, runs]; equal numbers are pairs, drawn together."""
    left = generator.integers(0, first, (resamples, first))
    return left, left if first == second else generator.integers(0, second, (resamples, second))


def compare_halves(
    first: Sequence[ImageCounts], second: Sequence[ImageCounts], num_classes: int, resamples: int, seed: int
) -> Comparison:
    """Each run's best beta chosen on the images at even positions, mIoU at it reported on those at odd ones.

    Args:
        first: the runs (seeds) of the first group, all of the same n images in the same order.
        second: those of the second.
        num_classes: K foreground classes.
        resamples: of the odd images (and of the runs).
        seed: of the resampling.
    """
    even = np.arange(len(first[0])) % 2 == 0
    chosen = [[best_index(counts, num_classes, even) for counts in group] for group in (first, second)]
    groups = [
        [counts.tallies(index, num_classes)[~even] for counts, index in zip(group, picked, strict=True)]
        for group, picked in zip((first, second), chosen, strict=True)
    ]
    generator = np.random.default_rng(seed)
    weights = image_weights(int((~even).sum()), resamples, generator)
    values = [np.array([miou(tallies.sum(axis=0)) for tallies in group]) for group in groups]
    spread = [np.stack([resampled_miou(tallies, weights) for tallies in group], axis=1) for group in groups]
    return _compared(values, spread, chosen, int((~even).sum()), generator)


def compare_best(
    first: Sequence[ImageCounts], second: Sequence[ImageCounts], num_classes: int, resamples: int, seed: int
) -> Comparison:
    """The paper's way: each run at the best beta of all images; a resample takes the best beta of its own.

    Args:
        first: the runs (seeds) of the first group, all of the same n images in the same order.
        second: those of the second.
        num_classes: K foreground classes.
        resamples: of the images (and of the runs).
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    weights = image_weights(len(first[0]), resamples, generator)
    values, spread, chosen = [], [], []
    for group in (first, second):
        found = [_best_of(counts, num_classes, weights) for counts in group]
        values.append(np.array([value for value, _, _ in found]))
        chosen.append([index for _, index, _ in found])
        spread.append(np.stack([resampled for _, _, resampled in found], axis=1))
    return _compared(values, spread, chosen, len(first[0]), generator)


def _best_of(
    counts: ImageCounts, num_classes: int, weights: NDArray[np.int64]
) -> tuple[float, int, NDArray[np.float64]]:
    """mIoU at the best beta, its index, and the best mIoU of every resample."""
    best, at, resampled = -1.0, 0, np.full(len(weights), -1.0)
    for index in range(len(BETAS) if counts.has_beta else 1):
        tallies = counts.tallies(index, num_classes)
        value = float(miou(tallies.sum(axis=0)))
        if value > best:
            best, at = value, index
        resampled = np.maximum(resampled, resampled_miou(tallies, weights))
    return best, at, resampled


def _compared(
    values: Sequence[NDArray[np.float64]],
    spread: Sequence[NDArray[np.float64]],
    chosen: Sequence[Sequence[int]],
    images: int,
    generator: np.random.Generator,
) -> Comparison:
    """From each run's value and its resampled values [R, runs], with the runs resampled too."""
    picks = seed_choices(len(values[0]), len(values[1]), len(spread[0]), generator)
    first, second = (np.take_along_axis(s, p, axis=1).mean(axis=1) for s, p in zip(spread, picks, strict=True))
    means = [float(value.mean()) for value in values]
    return Comparison(
        Estimate.of(means[0], first),
        Estimate.of(means[1], second),
        Estimate.of(means[1] - means[0], second - first),
        images,
        (tuple(index / 100 for index in chosen[0]), tuple(index / 100 for index in chosen[1])),
    )
