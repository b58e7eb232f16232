"""A crop to come as arrays: the image as it is, Pillow's weights of its resize, and where and how it is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cpn_kernels.ops.jittered_crop.place import Kind, Place, Step, check, hue_shift

PRECISION = 22
"""Bits of a weight behind the point: Pillow's."""

MOST_STEPS = 4
KINDS: dict[Kind, int] = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
"""As the kernels count them; -1 = no step."""

NUMBERS = 17
"""Of a crop: height, width; those of the resized image; 1 = mirrored; source row and column; target row and column;
extent in rows and columns; taps down and across; the kinds of its four steps."""

LARGEST = 2**31
"""Bound of what the kernels count in an image: they have numbers of 32 bits."""


class Packed(NamedTuple):
    """One crop to come; a batch has the first two of its crops one behind the other, and the others stacked.

    Attributes:
        pixels: uint8 [3 H W], the image.
        weights: int32 [any length]: down and then across, for each pixel of the resized image the first pixel that it
            is made of, then the weights of that one and those behind it: [1 + taps, scaled] in both.
        numbers: int64 [NUMBERS].
        amounts: float32 [4], of the steps: a factor, or the hue's shift in 256ths of the circle, 0 to 255.
    """

    pixels: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray
    amounts: np.ndarray


def pack(image: np.ndarray, place: Place, steps: Sequence[Step]) -> Packed:
    """What `augmented_crop` needs of an image.

    Args:
        image: uint8 [H, W, 3], RGB.
        place: where the crop's pixels come from.
        steps: in their order, each kind at most once.

    Raises:
        ValueError: for another dtype or shape, a cut outside of the image or the crop, a kind of step given twice, or
            an image too large for numbers of 32 bits.
    """
    check(image, place, steps)
    height, width = image.shape[:2]
    if 3 * max(height, place.scaled[0]) * max(width, place.scaled[1]) >= LARGEST:
        raise ValueError(
            f"augmented_crop: an image of {height} x {width} pixels, resized to {place.scaled[0]} x {place.scaled[1]}; "
            f"expected 3 x rows x columns below {LARGEST}"
        )
    down, across = resize_weights(height, place.scaled[0]), resize_weights(width, place.scaled[1])
    kinds, amounts = np.full(MOST_STEPS, -1), np.zeros(MOST_STEPS, np.float32)
    for number, (kind, amount) in enumerate(steps):
        kinds[number] = KINDS[kind]
        amounts[number] = hue_shift(amount) if kind == "hue" else amount
    geometry = (*place.scaled, int(place.flip), *place.source, *place.target, *place.extent)
    numbers = np.array([height, width, *geometry, len(down) - 1, len(across) - 1, *kinds], np.int64)
    weights = np.concatenate([down.ravel(), across.ravel()])
    return Packed(np.ascontiguousarray(image).reshape(-1), weights, numbers, amounts)


def resize_weights(size: int, scaled: int) -> np.ndarray:
    """Pillow's cubic weights of one direction, bit by bit: its sums run in this order and in float64.

    Args:
        size: pixels of the image, >= 1.
        scaled: pixels of the resized image, >= 1.

    Returns:
        int32 [1 + taps, scaled]: the first pixel, then the weights from it on, 0 behind the last.
    """
    scale = size / scaled
    support = 2.0 * max(1.0, scale)
    centre = (np.arange(scaled) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    tap = np.arange(int(count.max()))[:, None]
    raw = np.where(tap < count, _cubic((tap + first - centre + 0.5) * (1.0 / max(1.0, scale))), 0.0)
    total = raw.cumsum(0)[-1]
    value = raw / np.where(total != 0.0, total, 1.0)
    rounded = np.where(value < 0, -0.5, 0.5) + value * (1 << PRECISION)
    return np.concatenate([first[None], rounded.astype(np.int64)]).astype(np.int32)


def _cubic(x: np.ndarray) -> np.ndarray:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return np.where(x < 1.0, near, np.where(x < 2.0, (((x - 5) * x + 8) * x - 4) * a, 0.0))
