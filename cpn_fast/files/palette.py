"""Colours of classes for the eye, where VOC's own are not asked for."""

from __future__ import annotations

import colorsys
import functools

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.masks import VOID


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
    palette[VOID] = 255
    return palette
