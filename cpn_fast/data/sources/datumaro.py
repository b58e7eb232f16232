"""Datumaro's own format: `annotations/SUBSET.json`, with the images in `images/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.classes import SPLIT_NAMES
from cpn_fast.data.sources.export import Entry, Export, listed_classes
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.regions import Box, CocoCode, Ellipse, Polygons, Region, Shape, numbers
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.names import quoted
from cpn_fast.files.regular import is_regular

_WHAT = "Datumaro's JSON (categories and items)"
_UNREAD = ("caption",)


def looks_like(data: Any) -> bool:
    """Whether a JSON's content is Datumaro's."""
    return isinstance(data, dict) and isinstance(data.get("items"), list) and isinstance(data.get("categories"), dict)


def json_files(root: Path) -> list[Path]:
    """What may be its files in a folder: all JSON in `annotations/`."""
    folder = root / "annotations"
    return [path for path in sorted(folder.glob("*.json")) if is_regular(path)] if folder.is_dir() else []


def read(path: Path) -> Export:
    """Read a folder, or one file of it.

    Raises:
        DataError: if there is no such file, or one cannot be read as a whole.
    """
    paths = [path] if path.is_file() else json_files(path)
    root = path if not path.is_file() else path.parent.parent if path.parent.name == "annotations" else path.parent
    if not paths:
        raise DataError(f"{path / 'annotations'}: no SUBSET.json; expected {_WHAT} there and images in images/")
    files = ImageFiles(root)
    export = Export("Datumaro", root)
    names: list[object] | None = None
    for file in paths:
        data = read_json(file, _WHAT)
        if not looks_like(data):
            raise DataError(f"{file}: no 'items' and 'categories'; expected {_WHAT}")
        found = _names(data["categories"], file)
        if names is not None and found != names:
            raise DataError(f"{file}: its labels differ from those of {paths[0]}; give each set its own folder")
        names = found
        for number, item in enumerate(data["items"]):
            _add(export, item, f"items[{number}]", file, files, found)
    export.classes = listed_classes(names or (), str(paths[0]))
    return export


def _names(categories: dict[str, Any], path: Path) -> list[object]:
    labels = categories.get("label", {})
    labels = labels.get("labels") if isinstance(labels, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, dict) and "name" in label for label in labels):
        raise DataError(f"{path}: no categories.label.labels with names; expected {_WHAT}")
    return [label["name"] for label in labels]


def _add(export: Export, item: Any, where: str, path: Path, files: ImageFiles, names: list[object]) -> None:
    """Put an item into the export, or what is wrong with it."""
    annotations = item.get("annotations") if isinstance(item, dict) else None
    if not isinstance(annotations, list) or not isinstance(item.get("id"), str):
        export.problems.append(Problem(path, f"{where}: no id and annotations; expected both"))
        return
    subset = path.stem
    media = item.get("image") if isinstance(item.get("image"), dict) else {}
    bases = (f"images/{subset}", "images", "")
    image = files.find(media["path"], bases) if media.get("path") else ""
    if isinstance(image, str):  # a path of the machine that wrote it, or none: the item's id says the name, too
        by_id = files.stem(item["id"], bases)
        image = by_id if isinstance(by_id, Path) or not image else image
    if isinstance(image, str):
        export.problems.append(Problem(path, f"{where}: {image}"))
        return
    size = media.get("size")
    sides = None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 2**31 for side in size):
        sides = (size[1], size[0])
    elif size is not None:
        export.problems.append(Problem(path, f"{where}: size {quoted(size)}; expected [height, width] in pixels"))
        return
    shapes = []
    for number, annotation in enumerate(annotations):
        shape = _shape(annotation, f"{where}.annotations[{number}]", names)
        if isinstance(shape, str):
            export.problems.append(Problem(path, f"{where}.annotations[{number}]: {shape}"))
        elif shape is not None:
            shapes.append(shape)
    split = SPLIT_NAMES.get(subset.lower(), None if subset == "default" else subset)
    export.entries.append(Entry(files.id_of(image), image, path, tuple(shapes), split=split, size=sides))


def _shape(annotation: Any, where: str, names: list[object]) -> Shape | str | None:
    """An annotation's shape, what is wrong with it, or None for one that names no class."""
    if not isinstance(annotation, dict):
        return f"{type(annotation).__name__}; expected an object"
    kind, number = annotation.get("type"), annotation.get("label_id")
    if number is None or kind in _UNREAD:
        return None
    if type(number) is not int or not 0 <= number < len(names):
        return f"label_id {quoted(number)}; expected 0 to {len(names) - 1}"
    region = _region(kind, annotation)
    if isinstance(region, str):
        return region
    order = annotation.get("z_order", 0)
    return Shape(str(names[number]), region, where, order if type(order) is int else 0)


def _region(kind: Any, annotation: dict[str, Any]) -> Region | str | None:
    """Where it is: None for no place, a text for what is wrong."""
    if kind == "bbox":
        sides = numbers(annotation.get("bbox"))
        if sides is None or len(sides) != 4:
            return f"bbox {quoted(annotation.get('bbox'))}; expected [x, y, width, height]"
        return Box(sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3])
    if kind == "polygon":
        points = numbers(annotation.get("points"))
        return (
            f"points {quoted(annotation.get('points'))}; expected [x, y, ...]"
            if points is None
            else Polygons((points,))
        )
    if kind == "ellipse":
        sides = numbers(annotation.get("points"))
        if sides is None or len(sides) != 4:
            return f"points {quoted(annotation.get('points'))}; expected [left, top, right, bottom]"
        left, top, right, bottom = sides
        return Ellipse((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2)
    if kind == "mask":
        code = annotation.get("rle")
        return CocoCode(code) if isinstance(code, dict) else f"rle {quoted(code)}; expected COCO's run lengths"
    return None
