"""A class mask taken apart into the regions that become annotations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import VOID
from cpn_fast.files.member import ImageFile

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

        numbers, _ = ndimage.label(covered, structure=np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(numbers), start=1):
            region = np.zeros(mask.shape, dtype=bool)
            region[box] = numbers[box] == number
            yield int(value), region


def object_mask(
    mask: NDArray[np.uint8], instances: Instances, most: int, where: ImageFile
) -> tuple[NDArray[np.uint8], int]:
    """The numbers of the objects, as VOC's `SegmentationObject` has them.

    Args:
        mask: uint8 [H, W].
        instances: how a class is divided.
        most: the highest number that there is.
        where: the mask, for the error.

    Returns:
        uint8 [H, W], 0 where no object is, 1.. in the order of `regions`; and how many there are.

    Raises:
        DataError: for more objects than numbers.
    """
    objects = np.zeros_like(mask)
    count = 0
    for _, region in regions(mask, instances):
        count += 1
        if count > most:
            raise DataError(
                f"{where}: more than {most} objects, which masks of 8 bits cannot tell apart; convert with --instances "
                "class"
            )
        objects[region] = count
    return objects, count
