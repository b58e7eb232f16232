"""What the exports of annotation tools have in common: entries with shapes, of which labels and masks are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.sources.base import FileSource, Problem, Scan, canonical, unknown_class
from cpn_fast.data.sources.folder import ALL, hash_split
from cpn_fast.data.sources.regions import Region, Shape
from cpn_fast.data.types import VOID, Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, image_size
from cpn_fast.files.label_columns import BACKGROUND, normal
from cpn_fast.files.labelmap import Labelmap
from cpn_fast.files.masks import check_class_count, read_classes, read_mask
from cpn_fast.files.names import class_fault, quoted


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an export.

    Attributes:
        id: unique within the source.
        image_path: the image file.
        file: where its annotations stand.
        shapes: they.
        labelled: whether anybody has looked: without a shape it then holds none of the classes.
        split: as the export says; None where it has none.
        mask_path: a file of ground truth.
        size: width and height as annotated, None where they are not said.
    """

    id: str
    image_path: Path
    file: Path
    shapes: tuple[Shape, ...]
    labelled: bool = True
    split: str | None = None
    mask_path: Path | None = None
    size: tuple[int, int] | None = None


@dataclass
class Export:
    """An export that has been read.

    Attributes:
        form: what it is, for `cpn check-data`.
        root: its folder.
        classes: as it lists them, background left out; None where it has no list: all names, sorted.
        entries: the images that can be used.
        problems: what is wrong with the rest.
        notes: what is no fault but may not be meant.
        by_area: smaller shapes lie on larger ones; else the later one lies on top.
        labelmap: what the masks' colours mean.
    """

    form: str
    root: Path
    classes: tuple[str, ...] | None = None
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_area: bool = False
    labelmap: Labelmap | None = None


class ExportSource(FileSource):
    """The export of an annotation tool, read whole by the module of its format.

    Splits are those of the export and `all`; where it has none, `train` and `val` by a hash of the id. The ground truth
    is the mask files of the export, or drawn from the outlines where it has any: boxes without outline are then void.

    Args:
        path: the export.
        read: of the format's module.
        spec: what `open_source` was given.
        max_pixels: largest image that is read.

    Raises:
        DataError: if it cannot be read as a whole.
    """

    def __init__(
        self, path: str | Path, read: Callable[[Path], Export], spec: str, max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> None:
        export = read(Path(path))
        super().__init__(spec, export.root, max_pixels)
        self._export = export
        self._classes, self._problems = _classes(export)
        self._value_of = {normal(name): number + 1 for number, name in enumerate(self._classes)} | {BACKGROUND: 0}
        self._outlined = any(
            shape.region is not None and shape.region.exact for entry in export.entries for shape in entry.shapes
        )
        self._by_id: dict[str, Entry] = {}
        self._by_split = self._sorted_out()

    @property
    def description(self) -> str:
        """The format."""
        return self._export.form

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes, as the export lists them, else sorted."""
        return self._classes

    def splits(self) -> tuple[str, ...]:
        """The names of the splits that hold an image, `all` last."""
        return tuple(self._by_split)

    def _scan(self, split: str) -> Scan:
        return Scan(tuple(self._by_split[split]), tuple(self._problems), tuple(self._export.notes))

    def _sorted_out(self) -> dict[str, list[Record]]:
        splits: dict[str, list[Record]] = {}
        has_splits = any(entry.split for entry in self._export.entries)
        everything = []
        for entry in sorted(self._export.entries, key=lambda entry: entry.id):
            other = self._by_id.setdefault(canonical(entry.id), entry)
            if other is not entry:
                message = f"image {quoted(entry.id)} comes twice (also in {other.file}); remove one"
                self._problems.append(Problem(entry.file, message))
                continue
            labels = self._labels(entry)
            record = Record(entry.id, entry.image_path, labels, entry.mask_path)
            everything.append(record)
            split = entry.split
            if not has_splits:
                split = None if labels is None else hash_split(entry.id)
            if split and split != ALL:
                splits.setdefault(split, []).append(record)
        return {**dict(sorted(splits.items())), ALL: everything}

    def _labels(self, entry: Entry) -> tuple[int, ...] | None:
        if not entry.labelled:
            return None
        values = {self._value_of.get(normal(shape.name), 0) for shape in entry.shapes}
        return tuple(sorted(value - 1 for value in values if value))

    def first(self, count: int, splits: Mapping[str, Sequence[Record]]) -> list[tuple[str, Record]]:
        """The export's first images."""
        records = {record.id: record for split in splits.values() for record in split}
        entries = [entry for entry in self._export.entries if entry.id in records][:count]
        root = self._export.root
        return [(os.path.relpath(entry.file, root), records[entry.id]) for entry in entries]

    def read_mask(self, record: Record) -> np.ndarray | None:
        """The ground truth, uint8 [H, W], or None where there is none.

        Raises:
            DataError: if a mask cannot be read, or an annotation not be drawn.
        """
        entry = self._by_id.get(canonical(record.id))
        if entry is None:
            raise DataError(f"{record.image_path}: not among the images of {self.spec}")
        if entry.mask_path is not None:
            return read_mask(entry.mask_path, len(self._classes), self.max_pixels, self._export.labelmap)
        if not self._outlined or not entry.labelled or _has_nowhere(entry.shapes):
            return None
        return self._drawn(entry)

    def _drawn(self, entry: Entry) -> NDArray[np.uint8]:
        width, height = image_size(entry.image_path)
        if entry.size is not None and entry.size != (width, height):
            raise DataError(
                f"{entry.image_path}: annotated at {entry.size[0]} x {entry.size[1]} pixels in {entry.file}, the image "
                f"has {width} x {height} (after EXIF rotation); make them equal"
            )
        if width * height > self.max_pixels:
            raise DataError(f"{entry.image_path}: {width} x {height} pixels, over the limit of {self.max_pixels:,}")
        shapes = [(shape, shape.region) for shape in entry.shapes if shape.region is not None]
        area = [
            -int(_pixels(entry, shape, region, height, width).sum()) if self._export.by_area else 0
            for shape, region in shapes
        ]
        order = sorted(
            range(len(shapes)), key=lambda place: (shapes[place][1].exact, shapes[place][0].order, area[place])
        )
        mask = np.zeros((height, width), dtype=np.uint8)
        for place in order:  # drawn one by one: all at once, they would take as many times the image's memory
            shape, region = shapes[place]
            value = self._value_of.get(normal(shape.name), 0) if region.exact else VOID
            mask[_pixels(entry, shape, region, height, width)] = value
        return mask


def _pixels(entry: Entry, shape: Shape, region: Region, height: int, width: int) -> NDArray[np.bool_]:
    try:
        return region.pixels(height, width)
    except ValueError as error:
        raise DataError(
            f"{entry.file}: {shape.where} of {entry.image_path}: cannot draw it on {width} x {height} pixels "
            f"({error}); correct or remove it"
        ) from error


def _has_nowhere(shapes: Sequence[Shape]) -> bool:
    """Whether a class is somewhere in the image, but nobody has said where."""
    placed = {shape.name for shape in shapes if shape.region is not None}
    return any(shape.region is None and shape.name not in placed and shape.name != BACKGROUND for shape in shapes)


def _classes(export: Export) -> tuple[tuple[str, ...], list[Problem]]:
    """The foreground classes, and the export's problems with those of names that are none."""
    listed = export.root / "classes.txt"
    problems = list(export.problems)
    classes = export.classes
    if classes is None and listed.is_file():
        classes = read_classes(listed)
    names = {normal(shape.name) for entry in export.entries for shape in entry.shapes} - {BACKGROUND}
    if classes is None:
        classes = tuple(sorted(name for name in names if not class_fault(name)))
    check_class_count(classes, str(export.root))
    known = set(map(normal, classes))
    if names - known:
        for entry in export.entries:
            for shape in entry.shapes:
                if normal(shape.name) not in known | {BACKGROUND}:
                    fault = class_fault(shape.name)
                    message = f"label {quoted(shape.name)} {fault}" if fault else unknown_class(shape.name, classes)
                    line = shape.where.removeprefix("line ")
                    if line.isdecimal():
                        problems.append(Problem(entry.file, message, int(line)))
                    else:
                        problems.append(Problem(entry.file, f"{shape.where}: {message}"))
    return classes, problems


def listed_classes(names: Sequence[object], where: str) -> tuple[str, ...]:
    """The foreground classes of a list of names, `background` left out.

    Args:
        names: as the export lists them.
        where: begins the error.

    Raises:
        DataError: for a name that cannot be a class, or that comes twice.
    """
    seen: set[object] = set()
    for number, name in enumerate(names):
        if fault := class_fault(name):
            raise DataError(f"{where}: class {number} {fault}; give it a name")
        if name in seen:
            raise DataError(f"{where}: class {quoted(name)} comes twice; give each class a name of its own")
        seen.add(name)
    return tuple(normal(str(name)) for name in names if name != BACKGROUND)
