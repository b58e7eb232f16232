"""mIoU for every background score beta, exactly, from one pass over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import VOID, check_mask_values

BETAS: NDArray[np.float32] = (np.arange(101) / 100).astype(np.float32)
"""The swept background scores 0, 0.01, ..., 1, in float32 as the maps are."""


@dataclass(frozen=True)
class ThresholdScores:
    """IoU at one background score.

    Attributes:
        beta: the background score, 0..1.
        miou: mean IoU over background and foreground classes, 0..1; a class neither true nor predicted is left out.
        background: IoU of background, NaN where it is in neither.
        foreground: mean IoU of the foreground classes.
        per_class: IoU of background and the K classes; None for a class in neither masks nor predictions.
    """

    beta: float
    miou: float
    background: float
    foreground: float
    per_class: tuple[float | None, ...]


def best_foreground(foreground: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The winning foreground class of every pixel and its score; on a tie the class of lower index.

    Args:
        foreground: float [K, H, W], normalised maps in 0..1; compared in float32.

    Returns:
        class index [H, W] in 0..K-1, score float32 [H, W].
    """
    maps = np.asarray(foreground, dtype=np.float32)
    best = maps.argmax(axis=0)
    return best, np.take_along_axis(maps, best[None], axis=0)[0]


def mask_at(best: NDArray[np.integer], score: NDArray[np.float32], beta: float) -> NDArray[np.uint8]:
    """The pseudo mask: argmax over [beta, foreground maps], so background wins a tie.

    Args:
        best: class index [H, W] in 0..K-1.
        score: float32 [H, W].
        beta: the background score, 0..1.

    Returns:
        uint8 [H, W], 0 background, 1..K classes.
    """
    return np.where(score > np.float32(beta), best + 1, 0).astype(np.uint8)


def iou_point(confusion: NDArray[np.int64], beta: float = math.nan) -> ThresholdScores:
    """IoU of background and classes from a confusion matrix.

    Args:
        confusion: int64 [C, C] or [C, C + 1], rows the true class, columns the predicted one; a last extra column holds
            pixels that the prediction left void, which are missed by their class and claimed by none.
        beta: the background score it belongs to, NaN for masks that were read.

    Returns:
        the IoU values; those of classes in neither rows nor columns are None and count in no mean. Without a pixel of a
        class in the truth all are NaN or None: all background would be perfect, so nothing is measured.
    """
    classes = len(confusion)
    if not confusion[1:].any():
        return ThresholdScores(float(beta), math.nan, math.nan, math.nan, (None,) * classes)
    inside = np.diag(confusion).astype(np.float64)
    union = confusion[:, :classes].sum(0) + confusion.sum(1) - inside
    iou = np.divide(inside, union, out=np.full(classes, np.nan), where=union > 0)

    def mean(values: NDArray[np.float64]) -> float:
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else math.nan

    per_class = tuple(None if np.isnan(v) else float(v) for v in iou)
    return ThresholdScores(float(beta), mean(iou), float(iou[0]), mean(iou[1:]), per_class)


def check_mask(mask: NDArray[np.uint8], shape: tuple[int, ...], num_classes: int, name: str) -> None:
    """Refuse a ground-truth mask of another size than the prediction or with values that are no class.

    Args:
        mask: uint8 [H, W].
        shape: (H, W) of the prediction.
        num_classes: K foreground classes.
        name: what to call the image in the error.

    Raises:
        DataError: naming the image, what was found and what was expected.
    """
    if mask.shape != shape:
        raise DataError(
            f"{name}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels but the prediction is "
            f"{shape[1]} x {shape[0]}; expected equal sizes: check that both belong to one image and were not resized"
        )
    check_mask_values(mask, num_classes, name)


Bins = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Of an image the flat bins of a `BetaSweep` that occur, ascending, and the pixels in each."""


def image_bins(
    best: NDArray[np.integer],
    score: NDArray[np.float32],
    mask: NDArray[np.uint8],
    num_classes: int,
    name: str = "image",
) -> Bins:
    """What one image adds to a `BetaSweep`.

    Args:
        best: class index [H, W] in 0..K-1, on a tie the lower one.
        score: float32 [H, W], the winning class's value in 0..1.
        mask: uint8 [H, W] ground truth.
        num_classes: K foreground classes.
        name: what to call the image in an error.

    Raises:
        DataError: for a mask of another size, with values that are no class, or scores that are not finite.
    """
    check_mask(mask, score.shape, num_classes, name)
    if not np.isfinite(score).all():
        raise DataError(f"{name}: the class maps hold NaN or infinity; expected finite values in 0..1")
    valid = mask != VOID
    below = np.searchsorted(BETAS, np.asarray(score, dtype=np.float32)[valid], side="left")
    keys = (mask[valid].astype(np.int64) * num_classes + best[valid]) * (len(BETAS) + 1) + below
    size = (num_classes + 1) * num_classes * (len(BETAS) + 1)
    if size <= 4 * keys.size:
        counts = np.bincount(keys, minlength=size)
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(keys, return_counts=True)  # many classes, few pixels: dense counts would cost more than sorting


class BetaSweep:
    """Histogram over (true class, best foreground class, score bin): the confusion matrix of every beta in one pass.

    A pixel is foreground at beta exactly if its best score is above beta, so the number of betas below its score says
    all there is to know about it. Void pixels (255) are left out.

    Args:
        num_classes: K foreground classes.
        keep_images: also keep what was counted of every single image, in `per_image`.

    Attributes:
        per_image: what was added for each image.
    """

    def __init__(self, num_classes: int, keep_images: bool = False) -> None:
        self.num_classes, self.keep_images = num_classes, keep_images
        self.per_image: list[Bins] = []
        self.images = 0
        self.without_mask = 0
        self._counts = np.zeros((num_classes + 1, num_classes, len(BETAS) + 1), dtype=np.int64)

    def update(self, foreground: NDArray[np.floating], mask: NDArray[np.uint8] | None, name: str = "image") -> None:
        """Count one image.

        Args:
            foreground: float [K, H, W], normalised maps in 0..1; compared in float32.
            mask: uint8 [H, W] ground truth, or None: the image is counted in `without_mask` only.
            name: what to call the image in an error.

        Raises:
            DataError: for a mask of another size, with values that are no class, or maps that are not finite.
        """
        if mask is None:
            self.without_mask += 1
            return
        if len(foreground) != self.num_classes:
            raise DataError(
                f"{name}: got {len(foreground)} maps, expected {self.num_classes}, one per foreground class"
            )
        self.update_best(*best_foreground(foreground), mask, name)

    def update_best(
        self, best: NDArray[np.integer], score: NDArray[np.float32], mask: NDArray[np.uint8], name: str = "image"
    ) -> None:
        """Count one image of which the winning class and its score are known; see `image_bins`."""
        self.add(image_bins(best, score, mask, self.num_classes, name))

    def add(self, bins: Bins) -> None:
        """Add what `image_bins` gave for an image."""
        present, counts = bins
        self._counts.reshape(-1)[present] += counts
        if self.keep_images:
            self.per_image.append(bins)
        self.images += 1

    def merge(self, other: BetaSweep) -> None:
        """Add the counts of another part of the same data. Raises ValueError for another number of classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge a sweep of {other.num_classes} classes into one of {self.num_classes}")
        self._counts += other._counts
        self.per_image += other.per_image
        self.images += other.images
        self.without_mask += other.without_mask

    def confusion(self, beta: float) -> NDArray[np.int64]:
        """Confusion matrix int64 [C, C] (rows the true class) at a beta of the grid. Raises ValueError off the grid."""
        return self._confusions()[self._index(beta)]

    def at(self, beta: float) -> ThresholdScores:
        """IoU at a beta of the grid 0, 0.01, ..., 1. Raises ValueError off the grid, DataError without any mask."""
        return self.table()[self._index(beta)]

    @property
    def has_foreground(self) -> bool:
        """Whether any pixel of the ground truth is of a class."""
        return bool(self._counts[1:].any())

    def best(self) -> ThresholdScores:
        """The point of highest mIoU, the lowest beta on a tie.

        Without a foreground pixel in the ground truth every value is NaN or None: all background, at beta 1, would be
        perfect whatever the maps, so nothing is measured.

        Raises:
            DataError: without any labelled pixel.
        """
        table = self.table()
        if not self.has_foreground:
            return ThresholdScores(math.nan, math.nan, math.nan, math.nan, (None,) * (self.num_classes + 1))
        return max(table, key=lambda point: point.miou)

    def table(self) -> list[ThresholdScores]:
        """IoU at each of the 101 betas. Raises DataError without any labelled pixel."""
        if not self._counts.any():
            raise DataError(
                f"no pixel with ground truth ({self.images} images with and {self.without_mask} without a mask were "
                "seen); expected at least one mask: score a split that has masks"
            )
        return [iou_point(matrix, round(i / 100, 2)) for i, matrix in enumerate(self._confusions())]

    @staticmethod
    def _index(beta: float) -> int:
        index = round(beta * 100)
        if not 0 <= index <= 100 or abs(index / 100 - beta) > 1e-6:
            raise ValueError(f"beta {beta} is not on the swept grid 0, 0.01, ..., 1")
        return index

    def _confusions(self) -> NDArray[np.int64]:
        """All confusion matrices, int64 [101, C, C]."""
        total = self._counts.sum(axis=2)
        up_to = np.cumsum(self._counts, axis=2)[:, :, : len(BETAS)]  # bins 0..i: background at BETAS[i]
        classes = self.num_classes + 1
        matrices = np.empty((len(BETAS), classes, classes), dtype=np.int64)
        matrices[:, :, 0] = up_to.sum(axis=1).T
        matrices[:, :, 1:] = (total[:, :, None] - up_to).transpose(2, 0, 1)
        return matrices
