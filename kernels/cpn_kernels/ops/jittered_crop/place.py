"""Where a crop's pixels come from, and the steps of a colour jitter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["brightness", "contrast", "saturation", "hue"]


class Step(NamedTuple):
    """One change of an image's colours.

    Attributes:
        kind: what is changed.
        amount: brightness, contrast, saturation: a factor >= 0, 1 = unchanged; hue: a shift in turns of the circle.
    """

    kind: Kind
    amount: float


@dataclass(frozen=True)
class Place:
    """The image is resized, flipped, then cut or padded to the crop.

    Attributes:
        scaled: height, width in pixels after the resize.
        flip: mirrored horizontally after the resize.
        size: height, width of the crop in pixels.
        source: top, left of the cut in the resized, flipped image.
        target: top, left of the cut in the crop.
        extent: rows, columns of the cut.
    """

    scaled: tuple[int, int]
    flip: bool
    size: tuple[int, int]
    source: tuple[int, int]
    target: tuple[int, int]
    extent: tuple[int, int]


def check(image: np.ndarray, place: Place, steps: Sequence[Step]) -> None:
    """Raise ValueError as `jittered_crop` says."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"jittered_crop: image is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3], H, W > 0"
        )
    for axis, name in enumerate(("rows", "columns")):
        extent = place.extent[axis]
        for what, begin, size in (
            ("resized image", place.source[axis], place.scaled[axis]),
            ("crop", place.target[axis], place.size[axis]),
        ):
            if begin < 0 or extent < 0 or begin + extent > size:
                raise ValueError(f"jittered_crop: {name} {begin} to {begin + extent} lie outside of a {what} of {size}")
    kinds = [step.kind for step in steps]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"jittered_crop: steps are {', '.join(kinds)}; expected each kind at most once")


def hue_shift(turns: float) -> int:
    """A shift of the hue in 256ths of the colour circle, 0 to 255."""
    return round(turns * 256) % 256


def turn_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Shift the hue: uint8 [H, W, 3] RGB -> the same, contiguous."""
    import cv2  # the operators on a GPU do without it

    # OpenCV's conversion keeps 256 hues like Pillow's, at a tenth of the time.
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(hue_shift(turns))
    # Into the same memory: a fresh image would cost as much as the conversion.
    turned: np.ndarray = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)
    return turned
