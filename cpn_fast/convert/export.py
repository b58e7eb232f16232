"""What a tool exported, as the readers of all formats give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.polygons import Ring
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, image_size, list_images
from cpn_fast.files.labelmap import Labelmap
from cpn_fast.files.masks import check_class_count
from cpn_fast.files.names import class_fault, path_fault, quoted


@dataclass(frozen=True)
class ReadOptions:
    """What is known beside the export.

    Attributes:
        images: folder of the images.
        classes: class names, one a line, or a `labelmap.txt`; None = the export's own.
        names: (kind, name in the export) -> name, where the way out changed names.
    """

    images: Path | None = None
    classes: Path | None = None
    names: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @cached_property
    def image_paths(self) -> dict[str, Path]:
        """The images by name without suffix; the first of two by that name."""
        if self.images is None:
            return {}
        return images_by_name(self.images)

    def image_path(self, name: str) -> Path | None:
        """The image of a name in the export, without suffix; None where it is not known."""
        return self.image_paths.get(self.names.get(("image", name), name))


@dataclass(frozen=True)
class ExportItem:
    """One image of an export.

    Attributes:
        id: its name without suffix, with slashes.
        image_name: the image's file name.
        read: gives the mask, uint8 [H, W], 0 background, 1..K, 255 void. Raises DataError.
    """

    id: str
    image_name: str
    read: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class Export:
    """An export, each image once.

    Attributes:
        format: which.
        classes: the K class names of mask values 1..K.
        items: the images.
        labelmap: names and colours, where the export has a `labelmap.txt`.
    """

    format: str
    classes: tuple[str, ...]
    items: tuple[ExportItem, ...]
    labelmap: Labelmap | None = None


def images_by_name(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without suffix."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def checked_name(value: Any, where: str) -> tuple[str, str]:
    """The id and the file name of an image that an export names.

    Raises:
        DataError: beginning with `where`, for what cannot be a file below a folder.
    """
    name = value.replace("\\", "/").removeprefix("./") if isinstance(value, str) else value
    if fault := path_fault(name):
        raise DataError(f"{where}: the image {quoted(value)} {fault}; correct the name")
    return str(PurePosixPath(name).with_suffix("")), name


def checked_classes(names: Sequence[Any], where: str) -> tuple[str, ...]:
    """The classes that an export names.

    Raises:
        DataError: beginning with `where`, for names that cannot be classes, come twice, or are none.
    """
    check_class_count(names, where)
    for name in names:
        if fault := class_fault(name):
            raise DataError(f"{where}: the class {quoted(name)} {fault}")
        if names.count(name) > 1:
            raise DataError(f"{where}: the class {quoted(name)} comes twice; give each class a name of its own")
    if not names:
        raise DataError(f"{where}: no class is named in it; name the classes, one a line, by --classes FILE")
    return tuple(names)


def checked_size(size: Sequence[Any], where: str) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        DataError: beginning with `where`, if these are no sides of an image, or more pixels than are read.
    """
    if len(size) != 2 or not all(
        type(side) in (int, float) and 1 <= side < 2**31 and side == side // 1 for side in size
    ):
        raise DataError(f"{where}: height and width {quoted(tuple(size))}; expected both in pixels")
    height, width = int(size[0]), int(size[1])
    if height * width > DEFAULT_MAX_PIXELS:
        raise DataError(f"{where}: {width} x {height} pixels, over the limit of {DEFAULT_MAX_PIXELS:,}")
    return height, width


def size_of_image(path: Path | None, name: str) -> tuple[int, int]:
    """Height and width of an image. Raises DataError where it is not known."""
    if path is None:
        raise DataError(f"{name}: its image is not there, and the format does not say its size; give --images FOLDER")
    width, height = image_size(path)
    return checked_size((height, width), str(path))


def checked_ring(points: Any, width: float, height: float, where: str) -> Ring:
    """A polygon of an export.

    Args:
        points: pairs of numbers, in the unit of `width` and `height`.
        width: of the image.
        height: of the image.
        where: begins the error.

    Returns:
        [n, 2].

    Raises:
        DataError: for anything but pairs of numbers near the image.
    """
    try:
        ring = np.array(points, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        ring = np.zeros(0)
    if ring.ndim != 2 or ring.shape[1:] != (2,) or ring.dtype.kind != "f":
        raise DataError(f"{where}: {quoted(points)}; expected a polygon of pairs of numbers")
    side = np.array([width, height])
    # An image's size beyond its edges is more than any tool writes; what lies there is cut off anyway.
    if not ((ring >= -side) & (ring <= 2 * side)).all():
        raise DataError(f"{where}: a point of a polygon lies far outside of the image or is no number; correct it")
    return ring
