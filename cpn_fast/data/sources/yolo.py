"""YOLO's labels: a text file per image with a line per object, boxes or outlines, and `data.yaml` with the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.export import Entry, Export, listed_classes
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.regions import Box, Polygons, Region, Shape
from cpn_fast.files.errors import DataError
from cpn_fast.files.names import path_fault, quoted
from cpn_fast.files.regular import is_regular
from cpn_fast.files.text import read_lines, read_text

YAML_SUFFIXES = (".yaml", ".yml")
_SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_MAX_YAML = 2_000_000
_BEYOND = 0.01
"""Tools round; what lies further outside of the image is another unit."""


def recognises(path: Path) -> bool:
    """Whether a folder holds YOLO's labels: `data.yaml`, `obj.names`, `classes.txt` by `labels/`; or is that YAML."""
    if path.is_file():
        return path.suffix.lower() in YAML_SUFFIXES
    if any((path / name).is_file() for name in (*_SETTINGS, "obj.names")):
        return True
    labels = path / "labels"
    return (path / "classes.txt").is_file() and labels.is_dir() and any(labels.rglob("*.txt"))


def read(path: Path) -> Export:
    """Read a folder or its `data.yaml`.

    Raises:
        DataError: if the classes are not there, or no image.
    """
    root = path.parent if path.is_file() else path
    settings = path if path.is_file() else next((root / n for n in _SETTINGS if (root / n).is_file()), None)
    if settings is not None:
        return _by_settings(root, settings)
    for name in ("obj.names", "classes.txt"):
        if (root / name).is_file():
            classes = [line for _, line in read_lines(root / name, "a list of class names")]
            return _read(root, root / name, classes, {})
    raise DataError(
        f"{root}: no {', '.join(_SETTINGS[:1])}, obj.names or classes.txt; expected YOLO's classes beside images/ and "
        "labels/"
    )


def _by_settings(root: Path, path: Path) -> Export:
    import yaml

    text = read_text(path, "YOLO's data.yaml")
    if len(text) > _MAX_YAML:
        raise DataError(f"{path}: {len(text):,} characters, expected YOLO's data.yaml of a few lines")
    try:
        found: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    except (RecursionError, ValueError):
        raise DataError(f"{path}: not YAML that can be read; expected YOLO's data.yaml") from None
    names = found.get("names") if isinstance(found, dict) else None
    if isinstance(names, dict) and all(type(key) is int for key in names):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{path}: the numbers of 'names' are not 0, 1, 2, ... without a gap; correct them")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: no 'names' (a list, or number: name); expected YOLO's data.yaml")
    count = found.get("nc")
    if type(count) is int and count != len(names):
        raise DataError(f"{path}: nc is {count}, but 'names' has {len(names)} classes; correct one of them")
    base = found.get("path")
    bases = [base] if isinstance(base, str) and not path_fault(base.replace("\\", "/")) else []
    places: dict[str, str] = {}
    for key, split in _SPLITS.items():
        value = found.get(key)
        for place in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            places |= {name: split for name in _places(place, key, root, path, bases)}
    return _read(root, path, names, places)


def _places(place: Any, key: str, root: Path, path: Path, bases: Sequence[str]) -> list[str]:
    """Folders of images relative to the root, or images themselves where `place` is a list of them."""
    if not isinstance(place, str):
        raise DataError(f"{path}: {key!r} is {type(place).__name__}; expected a folder of images")
    inside = place.replace("\\", "/").rstrip("/")
    while inside.startswith(("../", "./")):  # Roboflow writes ../train/images for train/images
        inside = inside.partition("/")[2]
    if fault := path_fault(inside):
        if inside.startswith("/"):
            inside = "/".join(PurePosixPath(inside).parts[-2:])  # where it lay on another machine
        else:
            raise DataError(f"{path}: {key!r} {quoted(place)} {fault}; write its path relative to the folder")
    for name in (inside, *(f"{base}/{inside}" for base in bases)):
        if (root / name).is_dir():
            return [PurePosixPath(name).as_posix()]
        if name.endswith(".txt") and is_regular(root / name):
            return [
                line.replace("\\", "/").removeprefix("./") for _, line in read_lines(root / name, "a list of images")
            ]
    return []


def _read(root: Path, settings: Path, names: Sequence[object], places: dict[str, str]) -> Export:
    files = ImageFiles(root)
    if not files.all:
        raise DataError(f"{root}: no images (by suffix) in it or in its folders; expected them beside YOLO's labels")
    classes = listed_classes(names, str(settings))
    export = Export(f"YOLO labels with {settings.name}", root, classes, by_area=True)
    without = []
    for image in files.all:
        relative = image.relative_to(root)
        split = _split_of(relative, places)
        if places and split is None:
            continue
        labels = _labels_file(root, relative)
        if labels is None:
            without.append(image)
        shapes = _shapes(labels, names, export.problems) if labels else ()
        export.entries.append(Entry(files.id_of(image), image, labels or settings, shapes, split=split))
    if len(without) == len(export.entries):
        raise DataError(
            f"{root}: no label file for any of {len(files.all)} images; expected labels/NAME.txt for images/NAME.jpg, "
            "or NAME.txt beside the image"
        )
    if without:
        export.notes.append(
            f"images without a label file, which YOLO takes as background alone: {len(without)}, e.g. {without[0]}"
        )
    return export


def _split_of(relative: Path, places: dict[str, str]) -> str | None:
    if not places:
        parts = (
            part.removeprefix("obj_").removesuffix("_data") for part in relative.parts[:-1]
        )  # CVAT: obj_train_data
        return next((_SPLITS[part] for part in parts if part in _SPLITS), None)
    name = relative.as_posix()
    parents = (parent.as_posix() for parent in relative.parents)
    return places.get(name) or next((places[parent] for parent in parents if parent in places), None)


def _labels_file(root: Path, image: Path) -> Path | None:
    """The label file: the last folder called images is labels there; or beside the image."""
    parts = list(image.parts)
    candidates = [root / image.with_suffix(".txt")]
    if "images" in parts[:-1]:
        place = len(parts) - 2 - parts[:-1][::-1].index("images")
        candidates.insert(0, root / Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt"))
    return next((path for path in candidates if is_regular(path)), None)


def _shapes(path: Path, names: Sequence[object], problems: list[Problem]) -> tuple[Shape, ...]:
    shapes = []
    try:
        lines = read_lines(path, "YOLO's labels")
    except DataError as error:
        problems.append(Problem(path, str(error).removeprefix(f"{path}").lstrip(",: ")))
        return ()
    for number, line in lines:
        found = _shape(line.split(), names)
        if isinstance(found, str):
            problems.append(Problem(path, found, number))
        else:
            shapes.append(Shape(str(names[found[0]]), found[1], f"line {number}"))
    return tuple(shapes)


def _shape(cells: Sequence[str], names: Sequence[object]) -> tuple[int, Region] | str:
    """Class number and region of a line, or what is wrong with it."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return f"{quoted(' '.join(cells))}; expected CLASS X Y WIDTH HEIGHT or CLASS X Y X Y ..., numbers alone"
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        return f"{len(values)} numbers; expected 5 (a box: class x y width height) or a class and 3 points or more"
    number = int(values[0]) if values[0].is_integer() else -1
    if not 0 <= number < len(names):
        return f"class {quoted(cells[0])}; expected 0 to {len(names) - 1}, the classes of the list"
    if not all(-_BEYOND <= value <= 1 + _BEYOND for value in values[1:]):
        worst = next(value for value in values[1:] if not -_BEYOND <= value <= 1 + _BEYOND)
        return f"{worst:g} is no share of the image; expected 0 to 1 (pixels divided by width or height)"
    if len(values) == 5:
        x, y, width, height = values[1:]
        return number, Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, unit=1)
    return number, Polygons((tuple(values[1:]),), unit=1)
