"""Roboflow's exports: a folder per split with `_classes.csv` (labels or masks), `_annotations.coco.json`, or YOLO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpn_fast.data.sources import yolo
from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.classes import SPLIT_NAMES
from cpn_fast.data.sources.coco_export import add_entries, read_instances_of_one_set
from cpn_fast.data.sources.export import Entry, Export, listed_classes
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.mask_values import shapes_of_masks
from cpn_fast.data.sources.regions import Shape
from cpn_fast.files.errors import DataError
from cpn_fast.files.labels_csv import read_label_table
from cpn_fast.files.regular import is_regular
from cpn_fast.files.table import Table, read_table

CLASSES, COCO = "_classes.csv", "_annotations.coco.json"
_MASK = "_mask"
_WHAT = "Roboflow's _classes.csv"


def recognises(path: Path) -> bool:
    """Whether a folder or one of its splits holds a file of Roboflow's own name."""
    return path.is_dir() and any(_files(path, name) for name in (CLASSES, COCO))


def read(path: Path) -> Export:
    """Read an export.

    Raises:
        DataError: if none of its files is there, or one cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{path}: expected the folder of a Roboflow export, with train/, valid/ and test/")
    if tables := _files(path, CLASSES):
        return _read_classes(path, tables)
    if instances := _files(path, COCO):
        return _read_coco(path, instances)
    if yolo.recognises(path):
        return yolo.read(path)
    raise DataError(f"{path}: no {CLASSES}, {COCO} or data.yaml in it or its splits; expected a Roboflow export")


def _files(root: Path, name: str) -> list[Path]:
    folders = [root, *sorted(entry for entry in root.iterdir() if entry.name.lower() in SPLIT_NAMES)]
    return [folder / name for folder in folders if is_regular(folder / name)]


def _split(root: Path, file: Path) -> str | None:
    return None if file.parent == root else SPLIT_NAMES[file.parent.name.lower()]


def _read_coco(root: Path, paths: Sequence[Path]) -> Export:
    every = read_instances_of_one_set(paths)
    files = ImageFiles(root)
    export = Export("Roboflow export, COCO", root, tuple(every[0].categories.values()), by_area=True)
    for path, found in zip(paths, every, strict=True):
        base = path.parent.relative_to(root).as_posix()
        add_entries(export, found, path, files, (base,), _split(root, path))
    return export


def _read_classes(root: Path, paths: Sequence[Path]) -> Export:
    files = ImageFiles(root)
    table = read_table(paths[0], _WHAT, "export it again")
    if [name.lower() for name in table.header] == ["pixel value", "class"]:
        return _read_masks(root, paths, files)
    export = Export("Roboflow export, multi-label classification", root)
    names: set[str] = set()
    for path in paths:
        labels = read_label_table(path)
        export.problems += [Problem(path, message, line) for line, message in labels.errors]
        export.notes += labels.notes
        names |= set(labels.classes)
        for row in labels.rows:
            image = files.find(row.image, (path.parent.relative_to(root).as_posix(),))
            if isinstance(image, str):
                export.problems.append(Problem(path, image, row.line))
                continue
            where = f"line {row.line}"
            shapes = tuple(Shape(labels.classes[number], None, where) for number in row.labels or ())
            split = _split(root, path)
            export.entries.append(Entry(files.id_of(image), image, path, shapes, row.labels is not None, split))
    export.classes = tuple(sorted(names))
    return export


def _read_masks(root: Path, paths: Sequence[Path], files: ImageFiles) -> Export:
    """Semantic segmentation: `NAME_mask.png` beside `NAME.jpg`, whose numbers `_classes.csv` lists."""
    first: tuple[str, ...] | None = None
    export = Export("Roboflow export, masks", root)
    for path in paths:
        classes = _pixel_classes(path, read_table(path, _WHAT, "export it again"))
        if first is not None and classes != first:
            raise DataError(f"{path}: its classes differ from those of {paths[0]}; export the splits again together")
        first = classes
    export.classes = first or ()
    pairs = []
    masks = {path.with_name(path.stem.removesuffix(_MASK)): path for path in files.all if path.stem.endswith(_MASK)}
    for image in files.all:
        if image.stem.endswith(_MASK):
            continue
        mask = masks.get(image.with_suffix(""))
        split = next((SPLIT_NAMES[p.lower()] for p in image.relative_to(root).parts if p.lower() in SPLIT_NAMES), None)
        if mask is None:
            export.problems.append(Problem(image, f"no mask {image.stem}{_MASK}.png beside it; add it or remove both"))
        else:
            pairs.append((image, mask, split))
    found = shapes_of_masks([mask for _, mask, _ in pairs], export.classes, None, export.problems)
    for (image, mask, split), shapes in zip(pairs, found, strict=True):
        if shapes is not None:
            export.entries.append(Entry(files.id_of(image), image, mask, shapes, split=split, mask_path=mask))
    return export


def _pixel_classes(path: Path, table: Table) -> tuple[str, ...]:
    """The classes of a file whose lines are "value, name": 0 is background, the others 1, 2, ... in order."""
    names = []
    for expected, (line, (value, name)) in enumerate(table.rows):
        if value != str(expected):
            raise DataError(f"{path}, line {line}: pixel value {value!r}; expected {expected}, counted from 0 in order")
        names.append(name)
    return listed_classes(names[1:], str(path))
