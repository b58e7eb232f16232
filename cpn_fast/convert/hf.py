"""Masks as Hugging Face's `imagefolder` with `metadata.jsonl`, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.export import Export, ExportItem, ReadOptions, checked_classes, checked_name
from cpn_fast.convert.folder import MaskItem, class_names
from cpn_fast.convert.instances import regions
from cpn_fast.convert.writer import Converted, Writer, to_json, write_file
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.labelmap import BACKGROUND
from cpn_fast.files.mask_folder import class_names as present_names
from cpn_fast.files.mask_folder import read_fitting_mask
from cpn_fast.files.masks import encode_mask
from cpn_fast.files.names import quoted
from cpn_fast.files.text import read_lines

SPLIT = "train"
METADATA, LABELS = "metadata.jsonl", "id2label.json"
IMAGES, MASKS = "images", "masks"


class HfWriter(Writer[str]):
    """`train/metadata.jsonl` with the images' and the masks' names, and `id2label.json`; void is 255."""

    keeps_void = True
    image_folder = f"{SPLIT}/{IMAGES}"

    def convert(self, item: MaskItem, target: Path) -> Converted[str]:
        """Write the PNG of a mask; its line."""
        mask = item.read()
        name = f"{MASKS}/{item.name}.png"
        write_file(target / SPLIT / name, encode_mask(mask, self.selection.palette))
        self.copy_image(item, target)
        held = np.bincount(mask.ravel(), minlength=256)[1 : len(self.selection.classes) + 1] > 0
        line = {
            "file_name": f"{IMAGES}/{item.image_name}",
            "mask_file_name": name,
            "classes": present_names(self.selection.classes, held),
        }
        return Converted(item, to_json(line), sum(1 for _ in regions(mask, self.options.instances)))

    def write(self, target: Path, converted: Iterator[Converted[str]]) -> None:
        """Write `metadata.jsonl` and the classes."""
        (target / SPLIT / IMAGES).mkdir(parents=True, exist_ok=True)
        with (target / SPLIT / METADATA).open("xb") as file:
            for each in converted:
                file.write(each.content.encode() + b"\n")
        names = {str(value): name for value, name in enumerate((BACKGROUND, *self.selection.classes))}
        write_file(target / LABELS, json.dumps(names, ensure_ascii=False, indent=2) + "\n")


def open_hf(path: Path, options: ReadOptions) -> Export:
    """Read a folder with `metadata.jsonl`, whose column `mask_file_name` names the masks.

    Raises:
        DataError: if there is none, or nothing says what the classes are.
    """
    files = sorted(path.rglob(METADATA))
    if not files:
        raise DataError(f"{path}: no {METADATA}")
    classes = class_names(path, options.classes) if options.classes is not None else _classes(path / LABELS)
    items = [_item(line, classes, file, number) for file in files for number, line in read_lines(file, "lines of JSON")]
    return Export("hf", classes, tuple(items))


def _classes(path: Path) -> tuple[str, ...]:
    names = read_json(path, "the names of mask values, {number: name}")
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))):
        raise DataError(f"{path}: expected {{number: name}} with the numbers 0, 1, ...")
    if names.get("0") != BACKGROUND:
        raise DataError(f"{path}: 0 is {quoted(names.get('0'))}; expected background")
    return checked_classes([names[str(value)] for value in range(1, len(names))], str(path))


def _item(line: str, classes: tuple[str, ...], file: Path, number: int) -> ExportItem:
    where = f"{file}, line {number}"
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise DataError(f"{where}: no JSON object; expected file_name and mask_file_name")
    name = checked_name(entry.get("file_name"), where)[1].removeprefix(f"{IMAGES}/")
    mask_name = checked_name(entry.get("mask_file_name"), where)[1]

    def read() -> NDArray[np.uint8]:
        return read_fitting_mask(file.parent / mask_name, len(classes), None)

    return ExportItem(checked_name(name, where)[0], name, read)
