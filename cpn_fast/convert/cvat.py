"""Masks as a zip of CVAT's "Segmentation mask 1.1"."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from cpn_fast.convert.folder import MaskItem, MaskSelection
from cpn_fast.convert.instances import Instances, regions
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MASK_FOLDER
from cpn_fast.files.masks import VOID, encode_mask, labelmap_text

OBJECT_FOLDER = "SegmentationObject"
LIST_NAME = "ImageSets/Segmentation/default.txt"

MAX_OBJECTS = 255
"""CVAT tells objects apart by the 255 colours of VOC's palette beside black."""


def check_names(folder: MaskSelection) -> None:
    """Raise DataError for a class or an id that CVAT's line-based lists cannot hold."""
    for name in folder.classes:
        if ":" in name or name != name.strip() or name.startswith("#"):
            raise DataError(
                f"class {name!r}: CVAT's labelmap.txt cannot hold a name with ':', '#' at its start or blanks at its "
                "ends; rename it in a list for --classes"
            )
    for item in folder.items:
        if item.id != item.id.strip() or item.id.startswith("#") or len(item.id.splitlines()) != 1:
            raise DataError(
                f"{item.mask_path}: CVAT's list of images cannot hold a name with '#' or a blank at its start, a blank "
                "at its end or a line break; rename it, or leave it out with --split"
            )


def convert_item(item: MaskItem, num_classes: int, instances: Instances) -> tuple[bytes, bytes, int, int]:
    """The class PNG and the object PNG of one mask, its number of objects and of void pixels.

    Void becomes background: CVAT refuses an archive with a colour that its labelmap does not name.

    Raises:
        DataError: see `MaskItem.read`, and for more objects than VOC has colours.
    """
    mask = item.read(num_classes)
    void = mask == VOID
    objects = np.zeros_like(mask)
    count = 0
    for _, region in regions(mask, instances):
        count += 1
        if count > MAX_OBJECTS:
            raise DataError(
                f"{item.mask_path}: more than {MAX_OBJECTS} objects, which CVAT's format cannot tell apart; convert "
                "with --instances class"
            )
        objects[region] = count
    mask[void] = 0
    return encode_mask(mask), encode_mask(objects), count, int(void.sum())


def write_cvat(
    file: BinaryIO, folder: MaskSelection, converted: Iterator[tuple[bytes, bytes, int, int]]
) -> tuple[int, int]:
    """Write the zip while the images come in; equal masks give an equal file, byte by byte.

    Args:
        file: where to; seekable.
        folder: gives the labels and the images' names.
        converted: what `convert_item` returned, in the order of `folder.items`.

    Returns:
        numbers of objects and of void pixels.
    """
    objects = void = 0
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "labelmap.txt", labelmap_text(folder.classes).encode("utf-8"))
        _add(archive, LIST_NAME, "".join(f"{item.id}\n" for item in folder.items).encode("utf-8"))
        for item, (class_png, object_png, item_objects, item_void) in zip(folder.items, converted, strict=True):
            _add(archive, f"{MASK_FOLDER}/{item.id}.png", class_png)
            _add(archive, f"{OBJECT_FOLDER}/{item.id}.png", object_png)
            objects, void = objects + item_objects, void + item_void
    return objects, void


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980, so that the time of the call changes nothing
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)
