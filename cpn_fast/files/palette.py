"""Colours of mask values: VOC's own, and others for the eye where those are not asked for."""

from __future__ import annotations

import colorsys
import functools

import numpy as np
from numpy.typing import NDArray


@functools.cache
def voc_palette() -> NDArray[np.uint8]:
    """The VOC colour of every mask value, uint8 [256, 3], read-only (the VOC development kit's `VOClabelcolormap`)."""
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    palette.setflags(write=False)
    return palette


@functools.cache
def page_palette() -> NDArray[np.uint8]:
    """Colours of the pages, uint8 [256, 3]: background black, void white, classes by the golden angle of hue.

    VOC's own palette, which the mask files have, tells neighbouring classes apart by shades that an eye can't.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label in range(254):
        bright = (1.0, 0.75, 0.9)[label % 3]
        rgb = colorsys.hsv_to_rgb(label * 0.381966 % 1.0, (0.75, 0.9, 0.5)[label // 3 % 3], bright)
        palette[label + 1] = [round(255 * value) for value in rgb]
    palette[255] = 255
    return palette
