"""Masks as a zip of CVAT's "Segmentation mask 1.1"."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from cpn_fast.convert.folder import MaskItem
from cpn_fast.convert.instances import object_mask
from cpn_fast.convert.names import LABELMAP_FILES
from cpn_fast.convert.writer import Converted, Writer
from cpn_fast.files.mask_folder import LABELMAP_NAME, MASK_FOLDER
from cpn_fast.files.masks import VOID, encode_mask, labelmap_text

OBJECT_FOLDER = "SegmentationObject"
LIST_NAME = "ImageSets/Segmentation/default.txt"

MAX_OBJECTS = 255
"""CVAT tells objects apart by the 255 colours of VOC's palette beside black."""


class CvatWriter(Writer[tuple[bytes, bytes]]):
    """A zip; equal masks give an equal file, byte by byte.

    Void becomes background: CVAT refuses an archive with a colour that its labelmap does not name.
    """

    name_rules = LABELMAP_FILES
    makes_folder = False

    def convert(self, item: MaskItem, target: Path) -> Converted[tuple[bytes, bytes]]:
        """The class PNG and the object PNG of a mask."""
        mask = item.read()
        void = self.lost_void(mask)
        objects, count = object_mask(mask, self.options.instances, MAX_OBJECTS, item.mask_path)
        mask[mask == VOID] = 0
        return Converted(item, (encode_mask(mask, self.selection.palette), encode_mask(objects)), count, void)

    def write(self, target: Path, converted: Iterator[Converted[tuple[bytes, bytes]]]) -> None:
        """Write the zip while the images come in."""
        labelmap = labelmap_text(self.selection.classes, self.selection.palette)
        names = "".join(f"{item.name}\n" for item in self.selection.items)
        with target.open("xb") as file, zipfile.ZipFile(file, "w") as archive:
            _add(archive, LABELMAP_NAME, labelmap.encode("utf-8"))
            _add(archive, LIST_NAME, names.encode("utf-8"))
            for each in converted:
                class_png, object_png = each.content
                _add(archive, f"{MASK_FOLDER}/{each.item.name}.png", class_png)
                _add(archive, f"{OBJECT_FOLDER}/{each.item.name}.png", object_png)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980, so that the time of the call changes nothing
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)
