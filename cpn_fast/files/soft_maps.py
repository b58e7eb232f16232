"""Compact class maps for later stages: uint8, the classes that are present only, one `.npz` per image."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.atomic import atomic_write_bytes
from cpn_fast.files.errors import DataError
from cpn_fast.files.max_side import enlarge


@dataclass(frozen=True)
class SoftMaps:
    """Class maps of one image.

    Attributes:
        classes: uint8 [P], mask values 1..K of the maps, ascending.
        maps: float32 [P, h, w] in 0..1, to 1/255; smaller than the image where `--max-side` reduced it.
        size: (height, width) of the image in pixels.
    """

    classes: NDArray[np.uint8]
    maps: NDArray[np.float32]
    size: tuple[int, int]

    def at_image_size(self) -> NDArray[np.float32]:
        """The maps, float32 [P, H, W]."""
        return enlarge(self.maps, *self.size)


def write_soft_maps(path: str | Path, soft: SoftMaps) -> None:
    """Write the maps in one step, values rounded to 1/255."""
    data = io.BytesIO()
    quantised = np.rint(soft.maps * 255).astype(np.uint8)
    np.savez_compressed(data, classes=soft.classes, maps=quantised, size=np.array(soft.size, dtype=np.int32))
    atomic_write_bytes(path, data.getvalue())


def read_soft_maps(path: str | Path) -> SoftMaps:
    """Read what `write_soft_maps` wrote.

    Raises:
        DataError: if the file is missing, damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            classes, maps, size = arrays["classes"], arrays["maps"], arrays["size"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot read class maps ({error}); expected what `cpn label --soft-maps` wrote: label it again"
        ) from error
    if classes.ndim != 1 or maps.ndim != 3 or len(classes) != len(maps) or maps.dtype != np.uint8 or size.shape != (2,):
        raise DataError(
            f"{path}: found maps {maps.dtype} {list(maps.shape)} of {classes.size} classes; expected uint8 [P, h, w] "
            "of P classes: label the image again"
        )
    return SoftMaps(classes, maps.astype(np.float32) / 255, (int(size[0]), int(size[1])))
