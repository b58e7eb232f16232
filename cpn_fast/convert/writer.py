"""What the writers of all formats share: what they are asked for, and how an image becomes a part of the output."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.folder import MaskItem, MaskSelection
from cpn_fast.convert.instances import Instances
from cpn_fast.convert.names import FILES, NameRules
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import VOID

Shapes = Literal["masks", "polygons"]
"""Objects as pixels (run lengths), or as outlines."""

T = TypeVar("T")


@dataclass(frozen=True)
class WriteOptions:
    """How masks become objects.

    Attributes:
        instances: how a class of an image is divided.
        shapes: pixels or outlines, where a format has both.
        tolerance: of the outlines, in pixels; see `polygons`.
        image_prefix: stands before the images' names, e.g. the start of a URL, where a format names them.
        copy_images: put the images into the output, where that is a folder.
    """

    instances: Instances = "class"
    shapes: Shapes = "masks"
    tolerance: float = 0.0
    image_prefix: str = ""
    copy_images: bool = False


@dataclass(frozen=True)
class Converted(Generic[T]):
    """One image on its way into the output.

    Attributes:
        item: the mask it was.
        content: what the format makes of it.
        objects: number of objects.
        void: number of void pixels that the format could not keep.
    """

    item: MaskItem
    content: T
    objects: int
    void: int = 0


class Writer(ABC, Generic[T]):
    """A format.

    Args:
        selection: the masks, with the names of the output.
        options: how they become objects.
    """

    name_rules: ClassVar[NameRules] = FILES
    makes_folder: ClassVar[bool] = True
    keeps_void: ClassVar[bool] = False
    has_masks: ClassVar[bool] = True
    has_polygons: ClassVar[bool] = False
    image_folder: ClassVar[str | None] = None
    """Where in the output images go; None = the format does not hold them."""

    def __init__(self, selection: MaskSelection, options: WriteOptions) -> None:
        self.selection = selection
        self.options = options

    @abstractmethod
    def convert(self, item: MaskItem, target: Path) -> Converted[T]:
        """Convert one mask. Called in threads.

        Args:
            item: the mask.
            target: the output, still under another name. A format that is a folder may write files of this item there.

        Raises:
            DataError: for a mask that cannot be read or does not fit into the format.
        """

    @abstractmethod
    def write(self, target: Path, converted: Iterator[Converted[T]]) -> None:
        """Write what holds all images, while they come in.

        Args:
            target: the output, still under another name.
            converted: in the order of the selection.
        """

    def beside(self) -> Mapping[str, str]:
        """Text files that lie beside an output file: ending of the name -> content."""
        return {}

    def lost_void(self, mask: NDArray[np.uint8]) -> int:
        """The number of void pixels of a mask where the format cannot keep them."""
        return 0 if self.keeps_void else int((mask == VOID).sum())

    def copy_image(self, item: MaskItem, target: Path) -> None:
        """Copy the image of a mask into the output, where that was asked for."""
        if not self.options.copy_images or self.image_folder is None:
            return
        if item.image_path is None:
            raise DataError(f"{item.mask_path}: its image is not known; give the folder of the images with --images")
        path = target / self.image_folder / item.image_name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item.image_path, path)

    def colours(self) -> list[str]:
        """The colour of each class as `#rrggbb`."""
        return [
            "#{:02x}{:02x}{:02x}".format(*colour)
            for colour in self.selection.palette[1 : len(self.selection.classes) + 1].tolist()
        ]


def to_json(value: Any) -> str:
    """JSON without NaN, in UTF-8's letters."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file of an output that still has another name; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
