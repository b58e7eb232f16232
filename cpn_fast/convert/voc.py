"""Masks as a folder in the layout of PASCAL VOC, with numbers or with colours in the PNGs, and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpn_fast.convert.export import Export, ExportItem, ReadOptions
from cpn_fast.convert.folder import VOID_CLASS, MaskItem, MaskSelection, class_names
from cpn_fast.convert.instances import object_mask, regions
from cpn_fast.convert.names import LABELMAP_FILES
from cpn_fast.convert.writer import Converted, Writer, write_file
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.labelmap import VOID_COLOUR, labelmap_of
from cpn_fast.files.mask_folder import LABELMAP_NAME, MASK_FOLDER, read_fitting_mask
from cpn_fast.files.masks import VOID, encode_mask, labelmap_text
from cpn_fast.files.member import ImageFile

OBJECT_FOLDER = "SegmentationObject"
LIST_NAME = "ImageSets/Segmentation/train.txt"


class VocWriter(Writer[bool]):
    """`SegmentationClass` and `SegmentationObject` as palette PNGs; void is 255 in both."""

    name_rules = LABELMAP_FILES
    keeps_void = True
    image_folder = "JPEGImages"

    def convert(self, item: MaskItem, target: Path) -> Converted[bool]:
        """Write the PNGs of a mask."""
        mask = item.read()
        objects, count = object_mask(mask, self.options.instances, VOID - 1, item.mask_path)
        objects[mask == VOID] = VOID
        write_file(target / MASK_FOLDER / f"{item.name}.png", encode_mask(mask, self.selection.palette))
        write_file(target / OBJECT_FOLDER / f"{item.name}.png", encode_mask(objects))
        self.copy_image(item, target)
        return Converted(item, bool((mask == VOID).any()), count)

    def write(self, target: Path, converted: Iterator[Converted[bool]]) -> None:
        """Write the labelmap and the list of images."""
        names, void = [], False
        for each in converted:
            names.append(f"{each.item.name}\n")
            void |= each.content
        write_file(target / LIST_NAME, "".join(names))
        write_file(target / LABELMAP_NAME, _labelmap(self.selection, void))


class RgbWriter(Writer[bool]):
    """`SegmentationClass` as PNGs in the colours of `labelmap.txt`; void in VOC's colour for it, (224, 224, 192)."""

    name_rules = LABELMAP_FILES
    keeps_void = True
    image_folder = "JPEGImages"

    def convert(self, item: MaskItem, target: Path) -> Converted[bool]:
        """Write the PNG of a mask."""
        mask = item.read()
        data = io.BytesIO()
        Image.fromarray(self.selection.palette[mask]).save(data, format="PNG")
        write_file(target / MASK_FOLDER / f"{item.name}.png", data.getvalue())
        self.copy_image(item, target)
        return Converted(item, bool((mask == VOID).any()), sum(1 for _ in regions(mask, self.options.instances)))

    def write(self, target: Path, converted: Iterator[Converted[bool]]) -> None:
        """Write the labelmap."""
        void = False
        for each in converted:
            void |= each.content
        write_file(target / LABELMAP_NAME, _labelmap(self.selection, void))


def _labelmap(selection: MaskSelection, void: bool) -> str:
    """With a line for void where a mask holds any: tools refuse a colour that no line names."""
    text = labelmap_text(selection.classes, selection.palette)
    return text + f"{VOID_CLASS}:{','.join(map(str, VOID_COLOUR))}::\n" if void else text


def open_voc(path: Path, options: ReadOptions) -> Export:
    """Read a folder of masks as CVAT, VOC's tools and we write it: palette, grey or RGB PNGs beside a `labelmap.txt`.

    Raises:
        DataError: if there is no mask, or nothing says what the classes are.
    """
    folder = find_masks(path)
    if folder is None:
        raise DataError(f"{path}: no masks; expected {MASK_FOLDER}/ID.png and {LABELMAP_NAME}")
    classes = class_names(folder.root, options.classes)
    labelmap = labelmap_of(folder.root / LABELMAP_NAME) if options.classes is None else None

    def item(name: str, mask_path: ImageFile) -> ExportItem:
        def read() -> NDArray[np.uint8]:
            return read_fitting_mask(mask_path, len(classes), None, labelmap)

        return ExportItem(name, f"{name}.jpg", read)

    return Export("voc", classes, tuple(item(*pair) for pair in folder.paths().items()), labelmap)
