"""A training crop of an image: resize, flip, colour jitter and cut, of which only what the crop shows is jittered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageStat

from cpn_kernels.ops import jittered_crop as ops
from cpn_kernels.ops.jittered_crop import Place, Step


def jittered_crop(image: np.ndarray, place: Place, steps: Sequence[Step], fill: tuple[int, int, int]) -> np.ndarray:
    """Resize an image (Pillow's cubic), flip it, change its colours and cut a crop out of it.

    The result is that of jittering the whole resized image and cutting then. The steps follow Pillow's `ImageEnhance`
    bit by bit, the hue OpenCV's conversion to 256 hues; the grey that a contrast moves away from is the mean over the
    whole resized image, with the steps before it applied. The native library does it in one pass over the rows and
    holds nothing but the crop; without it Pillow jitters the crop, and what stands before a contrast the whole image.

    Args:
        image: uint8 [H, W, 3], RGB.
        place: where the crop's pixels come from.
        steps: in their order, each kind at most once.
        fill: colour where the crop shows no image, uint8 RGB.

    Returns:
        uint8 [*place.size, 3].

    Raises:
        ValueError: for another dtype or shape, a cut outside of the image or the crop, or a kind of step given twice.
    """
    ops.check(image, place, steps)
    if ops.is_supported(image.shape[0], image.shape[1], place):
        return ops.jittered_crop(image, place, steps, fill)
    return with_pillow(image, place, steps, fill)


def with_pillow(image: np.ndarray, place: Place, steps: Sequence[Step], fill: tuple[int, int, int]) -> np.ndarray:
    """The crop, uint8 [*place.size, 3]; cut as early as a contrast allows, whose grey is the whole image's mean."""
    height, width = place.scaled
    # Across, then down, as the library does; Pillow by itself goes down first where an image is 100 times as high as
    # it is wide.
    picture = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    if place.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    contrast = next((number for number, step in enumerate(steps) if step.kind == "contrast"), 0)
    for step in steps[:contrast]:
        picture = _change(picture, step, 0)
    grey = 0
    if any(step.kind == "contrast" for step in steps):
        grey = int(ImageStat.Stat(picture.convert("L")).mean[0] + 0.5)
    (top, left), (row, column), (rows, columns) = place.source, place.target, place.extent
    picture = picture.crop((left, top, left + columns, top + rows))
    for step in steps[contrast:]:
        picture = _change(picture, step, grey)
    out = np.tile(np.array(fill, np.uint8), (*place.size, 1))
    out[row : row + rows, column : column + columns] = np.asarray(picture)
    return out


def _change(picture: Image.Image, step: Step, grey: int) -> Image.Image:
    if 0 in picture.size:
        return picture
    if step.kind == "hue":
        return Image.fromarray(ops.turn_hue(np.asarray(picture), step.amount))
    if step.kind == "contrast":
        return Image.blend(Image.new("RGB", picture.size, (grey, grey, grey)), picture, step.amount)
    enhance = ImageEnhance.Brightness if step.kind == "brightness" else ImageEnhance.Color
    return enhance(picture).enhance(step.amount)
