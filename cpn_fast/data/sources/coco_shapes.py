"""COCO's segmentations as pixels. Every number is checked before memory is taken or a library sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_NUMBERS = 6
"""Numbers of a polygon of three points; one of fewer has no area."""

_MAX_STEPS = 20_000_000
_STEPS_PER_PIXEL = 5
_MAX_GROUPS = 8


def without_area(segmentation: Any) -> bool:
    """Whether polygons of fewer than three points are among them, which no pixel belongs to."""
    if not isinstance(segmentation, list):
        return False
    return any(isinstance(part, list) and len(part) < MIN_NUMBERS and len(part) % 2 == 0 for part in segmentation)


def covered_pixels(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of one annotation.

    Args:
        segmentation: list of polygons [x, y, ...] (those without area are skipped; none at all is a box without
            outline), or RLE: `size` [height, width] and `counts`, a list or a compressed string.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        bool [height, width].

    Raises:
        ValueError: for anything else; it says what was found.
    """
    if isinstance(segmentation, list):
        return _polygon_pixels(segmentation, height, width)
    if not isinstance(segmentation, dict):
        raise ValueError(f"it is {type(segmentation).__name__}")
    size = segmentation.get("size")
    if not isinstance(size, list) or any(type(side) is not int for side in size) or size != [height, width]:
        raise ValueError(f"its size is {str(size)[:60]}")
    counts = segmentation.get("counts")
    runs = _plain_counts(counts, height * width) if isinstance(counts, list) else _unpacked(counts)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"its runs add up to {int(runs.sum())} pixels")
    values = np.zeros(len(runs), dtype=bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape(width, height).T


def _polygon_pixels(polygons: Sequence[Any], height: int, width: int) -> NDArray[np.bool_]:
    from pycocotools import mask as coco_mask

    codes = []
    for polygon in polygons:
        points = _points(polygon, height, width)
        if points is not None:
            codes += coco_mask.frPyObjects([points.ravel().tolist()], height, width)
    if not codes:
        return np.zeros((height, width), dtype=bool)
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def _points(polygon: Any, height: int, width: int) -> NDArray[np.float64] | None:
    """The points [n, 2] of a polygon, None for one without area."""
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise ValueError("a polygon is no list of pairs of numbers")
    # An image's size beyond its edges is more than any tool writes; what lies there is cut off anyway.
    for index, value in enumerate(polygon):
        side = (width, height)[index % 2]
        if isinstance(value, bool) or not isinstance(value, int | float) or not -side <= value <= 2 * side:
            raise ValueError(f"a coordinate is {str(value)[:40]}, outside of {-side}..{2 * side}")
    if len(polygon) < MIN_NUMBERS:
        return None
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() * _STEPS_PER_PIXEL + len(points)
    if steps > _MAX_STEPS:
        raise ValueError(f"the outline of a polygon is {steps / _STEPS_PER_PIXEL:.0f} pixels long")
    return points


def _plain_counts(counts: list[Any], pixels: int) -> NDArray[np.int64]:
    if not all(type(count) is int and 0 <= count <= pixels for count in counts):
        raise ValueError("a run is no number of pixels")
    return np.array(counts, dtype=np.int64)


def _unpacked(counts: Any) -> NDArray[np.int64]:
    """The runs of a compressed string: groups of 5 bits, from the third on as differences to the last but one."""
    if not isinstance(counts, str) or not counts:
        raise ValueError("its counts are neither a list nor a string")
    try:
        groups = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        groups = np.array([-1])
    ends = np.flatnonzero((groups & 32) == 0)
    if groups.min() < 0 or groups.max() > 63 or not len(ends) or ends[-1] != len(groups) - 1:
        raise ValueError("its counts are no compressed RLE")
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUPS:
        raise ValueError("its counts hold a number that is too large")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((groups & 31) << (5 * place), starts)
    numbers -= np.where(groups[ends] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
