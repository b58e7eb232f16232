"""Compact class maps for later stages: uint8, the classes that are present only, one `.npz` per image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.arrays import ArraySpec, damage_as, read_npz
from cpn_fast.files.atomic import atomic_write_bytes
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS
from cpn_fast.files.masks import MAX_CLASSES
from cpn_fast.files.max_side import enlarge

MAX_VALUES = 2**28
"""Most values P * h * w of one image's maps: 1 GiB as float32."""

_HALF = 0.5 / 255
"""Half of the step to which values are kept."""

_SPECS = {
    "classes": ArraySpec("ui", 1, MAX_CLASSES + 1),
    "maps": ArraySpec("u", 3, MAX_VALUES),
    "size": ArraySpec("ui", 1, 2),
}


@dataclass(frozen=True)
class SoftMaps:
    """Class maps of one image.

    Attributes:
        classes: uint8 [P], mask values of the maps, ascending: 1..K, and 0 where background has one too.
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
    """Write the maps in one step, values rounded to 1/255. Raises DataError as `encode_soft_maps`."""
    atomic_write_bytes(path, encode_soft_maps(soft, str(path)))


def encode_soft_maps(soft: SoftMaps, where: str = "soft maps") -> bytes:
    """The bytes of an `.npz` with the maps, values rounded to 1/255.

    Raises:
        DataError: beginning with `where`, for maps with a value that is not in 0..1 (NaN, say), or of more than
            `MAX_VALUES` values.
    """
    # Sums that were rounded may pass 1 by less than what is kept. False for NaN, too.
    if soft.maps.size and not (soft.maps.min() > -_HALF and soft.maps.max() < 1 + _HALF):
        raise DataError(
            f"{where}: class maps with values from {soft.maps.min()} to {soft.maps.max()}; expected 0..1: did the "
            "training of the network diverge?"
        )
    if soft.maps.size > MAX_VALUES:
        raise DataError(f"{where}: {soft.maps.size:,} values, at most {MAX_VALUES:,} are kept; lower --max-side")
    data = io.BytesIO()
    quantised = np.rint(np.clip(soft.maps, 0, 1) * 255).astype(np.uint8)
    np.savez_compressed(data, classes=soft.classes, maps=quantised, size=np.array(soft.size, dtype=np.int32))
    return data.getvalue()


def read_soft_maps(path: str | Path) -> SoftMaps:
    """Read what `write_soft_maps` wrote; memory is bounded by `MAX_VALUES`, whatever the file says of itself.

    Raises:
        DataError: if the file is missing, damaged or something else, or its arrays do not fit each other.
    """
    with damage_as(
        DataError,
        f"{path}: cannot read class maps ({{reason}}); expected what `cpn label --soft-maps` wrote: label it again",
    ):
        arrays = read_npz(path, _SPECS)
    classes, maps, size = arrays["classes"], arrays["maps"], arrays["size"].tolist()
    wrong = _misfit(classes, maps, size)
    if wrong:
        raise DataError(f"{path}: {wrong}: label the image again")
    values = maps.astype(np.float32) / np.float32(255)
    return SoftMaps(classes.astype(np.uint8), values, (size[0], size[1]))


def _misfit(classes: NDArray[np.integer], maps: NDArray[np.integer], size: list[int]) -> str:
    """What is wrong with the three arrays; "" where they fit."""
    if maps.dtype != np.uint8 or len(classes) != len(maps) or len(size) != 2:
        return (
            f"found maps {maps.dtype} {list(maps.shape)} of {classes.size} classes; expected uint8 [P, h, w] of P "
            "classes and the size of an image"
        )
    values = classes.astype(np.int64)
    if len(values) and (values.min() < 0 or values.max() > MAX_CLASSES or (np.diff(values) <= 0).any()):
        return f"maps of the classes {values[:10].tolist()}; expected different ones in 0..{MAX_CLASSES}, ascending"
    height, width = size
    if min(size) < 1 or height * width > DEFAULT_MAX_PIXELS:
        return f"for an image of {width} x {height} pixels; expected 1 to {DEFAULT_MAX_PIXELS:,} pixels"
    if maps.size and not (0 < maps.shape[1] <= height and 0 < maps.shape[2] <= width):
        return f"maps of {maps.shape[2]} x {maps.shape[1]} pixels for an image of {width} x {height}"
    if len(maps) and not maps.size:
        return f"maps of {maps.shape[2]} x {maps.shape[1]} pixels"
    return ""
