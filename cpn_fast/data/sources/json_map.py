"""Labels as plain JSON: `{image: [labels]}`, or a list of `{"image": ..., "labels": [...]}`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.export import Entry, Export
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.regions import Shape
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.label_columns import NAMES
from cpn_fast.files.names import class_fault, quoted

_WHAT = 'labels as JSON, {"a.jpg": ["cat", "dog"]} or [{"image": "a.jpg", "labels": ["cat"]}]'


def looks_like(data: Any) -> bool:
    """Whether a JSON's content is of this form, by its first entry."""
    if isinstance(data, dict):
        first = next(iter(data.items()), None)
        return first is not None and "." in first[0] and (first[1] is None or _is_labels(first[1]))
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and _keys(data[0]) is not None


def read(path: Path) -> Export:
    """Read a file of labels; images are those of its folder.

    Raises:
        DataError: if it is no such JSON.
    """
    data = read_json(path, _WHAT)
    if not isinstance(data, dict | list) or not data:
        raise DataError(f"{path}: {'nothing in it' if data in ({}, []) else type(data).__name__}; expected {_WHAT}")
    files = ImageFiles(path.parent, apart=("masks",))
    export = Export(f"{path.name}, a JSON of image labels", path.parent)
    for where, image, labels, split in _entries(data, path, export.problems):
        found = files.find(image)
        names = [labels] if isinstance(labels, str) else labels
        if isinstance(found, str):
            export.problems.append(Problem(path, f"{where}: {found}"))
        elif names is not None and not _is_labels(names):
            export.problems.append(Problem(path, f"{where}: labels {quoted(labels)}; expected a list of names"))
        elif split is not None and (fault := class_fault(split)):
            export.problems.append(Problem(path, f"{where}: split {quoted(split)} {fault}; write train, val, ..."))
        else:
            shapes = tuple(Shape(name, None, where) for name in names or ())
            mask = path.parent / "masks" / f"{files.id_of(found)}.png"
            entry = Entry(
                files.id_of(found), found, path, shapes, names is not None, split, mask if mask.is_file() else None
            )
            export.entries.append(entry)
    return export


def _entries(data: Any, path: Path, problems: list[Problem]) -> Iterator[tuple[str, Any, Any, Any]]:
    """(place in the file, image, labels, split) of every entry."""
    if isinstance(data, dict):
        for image, labels in data.items():
            yield f"entry {quoted(image)}", image, labels, None
        return
    for number, entry in enumerate(data):
        keys = _keys(entry) if isinstance(entry, dict) else None
        if keys is None:
            problems.append(Problem(path, f"[{number}]: no image and labels in it; expected {_WHAT}"))
        else:
            yield f"[{number}]", entry[keys[0]], entry[keys[1]], entry.get("split")


def _keys(entry: dict[str, Any]) -> tuple[str, str] | None:
    image, labels = (next((name for name in NAMES[role] if name in entry), None) for role in ("image", "labels"))
    return (image, labels) if image and labels else None


def _is_labels(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))
