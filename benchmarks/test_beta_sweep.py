"""mIoU for 101 background scores: one pass with histograms against one confusion matrix per score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cpn_fast.metrics.beta_sweep import BETAS, BetaSweep

CLASSES, HEIGHT, WIDTH, IMAGES = 20, 375, 500, 2


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps float32 [K, H, W] of which three classes are present, and a mask uint8 [H, W] with void."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((CLASSES, HEIGHT, WIDTH), np.float32)
    maps[[2, 7, 11]] = rng.random((3, HEIGHT, WIDTH), np.float32)
    mask = rng.choice(np.array([0, 0, 0, 3, 8, 12, 255], np.uint8), (HEIGHT, WIDTH))
    return maps, mask


def one_matrix_per_score(scenes: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    size = CLASSES + 1
    found = []
    for beta in BETAS:
        confusion = np.zeros((size, size), np.int64)
        for maps, mask in scenes:
            best = maps.argmax(axis=0)
            label = np.where(maps.max(axis=0) > beta, best + 1, 0)
            valid = mask != 255
            confusion += np.bincount(mask[valid].astype(np.int64) * size + label[valid], minlength=size * size).reshape(
                size, size
            )
        union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
        seen = union > 0
        found.append(float((np.diag(confusion)[seen] / union[seen]).mean()))
    return found


def one_pass(scenes: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    sweep = BetaSweep(CLASSES)
    for maps, mask in scenes:
        sweep.update(maps, mask, "scene")
    return [point.miou for point in sweep.table()]


def test_one_pass_against_one_matrix_per_score(against: Callable[..., float]) -> None:
    scenes = [scene(seed) for seed in range(IMAGES)]

    def agree() -> None:
        np.testing.assert_allclose(one_pass(scenes), one_matrix_per_score(scenes), rtol=0, atol=1e-12)

    against(candidate=lambda: one_pass(scenes), peer=lambda: one_matrix_per_score(scenes), agree=agree, items=IMAGES)
