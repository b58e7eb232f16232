"""Hugging Face's `imagefolder`: images with `metadata.jsonl` or `metadata.csv`, per split or for all of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.classes import SPLIT_NAMES
from cpn_fast.data.sources.export import Entry, Export
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.regions import Box, Shape, numbers
from cpn_fast.files.errors import DataError
from cpn_fast.files.label_columns import NAMES
from cpn_fast.files.masks import read_classes
from cpn_fast.files.names import quoted
from cpn_fast.files.regular import is_regular
from cpn_fast.files.table import read_table
from cpn_fast.files.text import read_lines

FILES = ("metadata.jsonl", "metadata.csv")
_WHAT = "Hugging Face's metadata with file_name and label (or labels, or objects)"


def metadata_files(root: Path) -> list[Path]:
    """The metadata of a folder, of its splits, and of `data/` with either."""
    folders = [root, root / "data"]
    folders += [
        path for base in (root, root / "data") if base.is_dir() for path in sorted(base.iterdir()) if path.is_dir()
    ]
    return list(dict.fromkeys(folder / name for folder in folders for name in FILES if is_regular(folder / name)))


def recognises(path: Path) -> bool:
    """Whether a folder holds metadata (or the path is such a file)."""
    return path.name in FILES if path.is_file() else bool(metadata_files(path))


def read(path: Path) -> Export:
    """Read a folder or its metadata file.

    Raises:
        DataError: if there is no metadata, or it has no column of labels.
    """
    root, found = (path.parent, [path]) if path.is_file() else (path, metadata_files(path))
    if not found:
        raise DataError(f"{root}: no {' or '.join(FILES)} in it or in its splits' folders; expected {_WHAT}")
    listed = root / "classes.txt"
    classes = read_classes(listed) if listed.is_file() else None
    files = ImageFiles(root)
    export = Export(f"Hugging Face imagefolder with {found[0].name}", root, classes)
    for metadata in found:
        for line, row in _rows(metadata, export.problems):
            entry = _entry(line, row, metadata, files, classes)
            if isinstance(entry, str):
                export.problems.append(Problem(metadata, entry, line))
            else:
                export.entries.append(entry)
    masks = {entry.mask_path for entry in export.entries}
    export.entries = [entry for entry in export.entries if entry.image_path not in masks]
    return export


def _rows(path: Path, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".csv":
        table = read_table(path, _WHAT, "put texts that hold a comma in double quotes")
        yield from ((line, dict(zip(table.header, cells, strict=True))) for line, cells in table.rows)
        return
    for line, text in read_lines(path, _WHAT):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield line, row
        else:
            problems.append(Problem(path, f"{quoted(text)} is no JSON object; expected one a line", line))


def _entry(
    line: int, row: dict[str, Any], path: Path, files: ImageFiles, classes: tuple[str, ...] | None
) -> Entry | str:
    """The entry of a row, or what is wrong with it."""
    key = next((name for name in ("file_name", *NAMES["image"]) if name in row), None)
    if key is None:
        return f"no file_name among {quoted(', '.join(row))}; expected {_WHAT}"
    base = path.parent.relative_to(files.root).as_posix()
    image = files.find(row[key], (base,))
    if isinstance(image, str):
        return image
    shapes = _shapes(line, row, classes)
    if isinstance(shapes, str):
        return shapes
    mask = files.find(row["mask_file_name"], (base,)) if row.get("mask_file_name") else None
    if isinstance(mask, str):
        return f"mask_file_name: {mask}"
    folders = image.relative_to(files.root).parts[:-1]
    split = next((SPLIT_NAMES[part.lower()] for part in folders if part.lower() in SPLIT_NAMES), None)
    return Entry(files.id_of(image), image, path, shapes or (), shapes is not None, split, mask)


def _shapes(line: int, row: dict[str, Any], classes: tuple[str, ...] | None) -> tuple[Shape, ...] | str | None:
    """Shapes of a row, None where its labels are empty, or what is wrong with them."""
    where = f"line {line}"
    objects = row.get("objects")
    if isinstance(objects, dict):
        return _objects(objects, where, classes)
    key = next((name for name in (*NAMES["labels"], "category", "categories") if name in row), None)
    if key is None:
        return f"no label, labels or objects among {quoted(', '.join(row))}; expected {_WHAT}"
    value = row[key]
    if isinstance(value, str):
        value = [name.strip() for name in next(csv.reader(io.StringIO(value), delimiter=";"), []) if name.strip()]
        value = value or None
    if value is None:
        return None
    shapes = []
    for item in value if isinstance(value, list) else [value]:
        name = _name(item, classes)
        if name is None:
            return f"{key} holds {quoted(item)}; expected names" + (f", or 0 to {len(classes) - 1}" if classes else "")
        shapes.append(Shape(name, None, where))
    return tuple(shapes)


def _objects(objects: dict[str, Any], where: str, classes: tuple[str, ...] | None) -> tuple[Shape, ...] | str:
    boxes = objects.get("bbox", objects.get("bboxes"))
    kinds = objects.get("categories", objects.get("category"))
    if not isinstance(boxes, list) or not isinstance(kinds, list) or len(boxes) != len(kinds):
        return 'objects without "bbox" and "categories" of one length; expected both'
    shapes = []
    for box, kind in zip(boxes, kinds, strict=True):
        name, sides = _name(kind, classes), numbers(box)
        if name is None or sides is None or len(sides) != 4:
            return f"objects: {quoted(kind)} at {quoted(box)}; expected a name and [x, y, width, height]"
        left, top, width, height = sides
        shapes.append(Shape(name, Box(left, top, left + width, top + height), where))
    return tuple(shapes)


def _name(value: Any, classes: tuple[str, ...] | None) -> str | None:
    """A class's name; its number where the classes are listed, else written out. None for what is neither."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    if classes is not None and value not in classes and (isinstance(value, int) or value.isdecimal()):
        return classes[int(value)] if len(str(value)) < 5 and 0 <= int(value) < len(classes) else None
    return str(value)
