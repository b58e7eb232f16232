"""A class mask taken apart into the regions that become annotations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.masks import VOID

Instances = Literal["class", "components"]
"""One region per class of an image, or one per 8-connected component of it."""


def regions(mask: NDArray[np.uint8], instances: Instances) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The regions of a mask, by ascending class, and within a class in the order of their first pixels (row by row).

    Args:
        mask: uint8 [H, W]; background and void belong to no region.
        instances: how a class is divided.

    Yields:
        the mask value 1..254 and the region, bool [H, W].
    """
    for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[:VOID]):
        if value == 0:
            continue
        covered = mask == value
        if instances == "class":
            yield int(value), covered
            continue
        from scipy import ndimage

        numbers, count = ndimage.label(covered, structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            yield int(value), numbers == number
