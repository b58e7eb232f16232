"""A folder of images with a table of image labels, or without any labels."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cpn_fast.data.sources.base import FileSource, Problem, Scan, canonical, unread_masks
from cpn_fast.data.sources.folder_images import FolderImages, FolderRecords, without_suffix
from cpn_fast.data.sources.split_names import unusual_splits
from cpn_fast.data.types import Record
from cpn_fast.files.chosen import in_order
from cpn_fast.files.errors import DataError
from cpn_fast.files.hash_index import HashIndex
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, images_below
from cpn_fast.files.label_rows import LabelRows
from cpn_fast.files.labels_csv import LabelTable, read_label_table
from cpn_fast.files.masks import read_classes
from cpn_fast.files.packed import PackedTexts
from cpn_fast.files.regular import is_regular
from cpn_fast.files.table import CSV_SUFFIXES, TABLE_SUFFIXES

ALL = "all"
"""The split of all images, labelled or not. Every folder has it."""

VAL_SHARE = 0.2
"""Share of the images that the hash puts into `val` where the CSV has no split column."""


class FolderSource(FileSource):
    """Images anywhere under a root and a table of labels (CSV or spreadsheet; see `files.labels_csv`).

    Ids are paths relative to the image root, without suffix. The image root is `ROOT/images` if every image is in it,
    else ROOT. The table is `labels.csv`, the only CSV, or the only spreadsheet in ROOT; its names are relative to ROOT
    or to the image root, with or without suffix. Classes are those of `ROOT/classes.txt`, else all names in the table,
    sorted. A mask is the path in the mask column (relative to ROOT), else `ROOT/masks/ID.png` where it exists.

    Splits: `all`, and those of the split column; without that column `train` and `val` by a hash of the id (an image
    never changes its split when others come or go); without a CSV only `all`. Images that the CSV leaves out, or whose
    labels cell is empty, have labels None: they are in `all`, and not in the hash splits.

    Args:
        path: the root, or the table in it.
        spec: what `open_source` was given; None = `folder:PATH`.
        max_pixels: largest image that is read.

    Raises:
        DataError: if there is no image, several CSVs, or a CSV that cannot be read.
    """

    def __init__(self, path: str | Path, spec: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        path = Path(path)
        super().__init__(spec or f"folder:{path}", path.parent if path.is_file() else path, max_pixels)
        self._path = path
        self._look_through()

    def __getstate__(self) -> dict[str, Any]:
        """Without what lies in the folder, for whoever reads single records; it is looked through again if needed."""
        return {**self.__dict__, "_images": None, "_table": None, "_by_split": None, "_problems": [], "_scans": {}}

    def _look_through(self) -> FolderImages:
        """Read the table and list the images."""
        path = self._path
        table_path = path if path.is_file() else find_table(path)
        named = self.root / "classes.txt"
        classes = read_classes(named) if named.exists() else None
        table = self._table = read_label_table(table_path, classes) if table_path else None
        self._classes = table.classes if table else classes or ()
        self._description = "a folder of images without labels"
        if table is not None:
            self._description = f"a folder of images with {table.path.name} ({table.form})"
        names, inside = _listed(self.root, table)
        if not names and not table:
            raise DataError(f"{path}: no images (by suffix) in it or in its folders")
        image_root = self.root / "images" if inside else self.root
        self._images: FolderImages | None = FolderImages(
            self.root, names, image_root, table.rows if table else LabelRows()
        )
        self._by_split: dict[str, FolderRecords] | None = None
        self._problems: list[Problem] = []
        return self._images

    @property
    def description(self) -> str:
        """The kind of source, and what was understood of its table."""
        return self._description

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes; empty for a folder without CSV and without `classes.txt`."""
        return self._classes

    def splits(self) -> tuple[str, ...]:
        """The names of the splits that hold an image, `all` last."""
        return tuple(self._sorted_out())

    def _scan(self, split: str) -> Scan:
        # A row that matches no image may belong to any split, so every split has the whole folder's problems.
        by_split = self._sorted_out()
        everything, table = by_split[ALL], self._table
        notes = table.notes if table else ()
        images = everything.images
        unlabelled = array("I", (number for number in everything.numbers if images.labels(number) is None))
        if table is not None and unlabelled:
            example = images.id(unlabelled[0])
            notes += (f"images without labels in {table.path}: {len(unlabelled)}, e.g. {example}",)
        if table is not None and table.has_splits:
            named = {name: len(records) for name, records in by_split.items() if name != ALL}
            notes += unusual_splits(named, table.path)
        warnings = unread_masks(self.root / "masks", everything)
        return Scan(by_split[split], tuple(self._problems), notes, warnings)

    def first(self, count: int, splits: Mapping[str, Sequence[Record]]) -> list[tuple[str, Record]]:
        """The images of the table's first lines; without a table the first images."""
        images = self._sorted_out()[ALL].images
        if self._table is None:
            return super().first(count, splits)
        given = {
            number for records in splits.values() if isinstance(records, FolderRecords) for number in records.numbers
        }
        found = []
        for place in range(len(images.rows)):
            number = self._find(place, images)
            if number in given and images.row(number) == place:
                where = f"{self._table.path.name}, line {images.rows.line(place)}"
                found.append((where, images.record(number)))
                if len(found) == count:
                    break
        return found

    def _sorted_out(self) -> dict[str, FolderRecords]:
        """Records by split, worked out once; fills `_problems`."""
        if self._by_split is None:
            images = self._images or self._look_through()
            left_out = self._check_twins(images)
            self._match_rows(images)
            has_masks, table = (self.root / "masks").is_dir(), self._table
            splits: dict[str, array[int]] = {ALL: array("I")}
            for number in in_order(len(images), images.key):
                if number in left_out:
                    continue
                images.find_mask(number, has_masks)
                splits[ALL].append(number)
                place = images.row(number)
                split = None if place is None else images.rows.split(place)
                if table is not None and not table.has_splits and images.labels(number) is not None:
                    split = hash_split(images.id(number))
                if split and split != ALL:
                    splits.setdefault(split, array("I")).append(number)
            names = [*sorted(splits.keys() - {ALL}), ALL]
            self._by_split = {name: FolderRecords(images, splits[name]) for name in names}
        return self._by_split

    def _check_twins(self, images: FolderImages) -> set[int]:
        """The images whose id another one has; each is a problem."""
        twins = dict(images.twins())
        for number, other in sorted(twins.items(), key=lambda pair: images.path(pair[0])):
            message = f"the same id {images.key(number)!r} as {images.path(other)}; rename or remove one"
            self._problems.append(Problem(images.path(number), message))
        return set(twins)

    def _match_rows(self, images: FolderImages) -> None:
        """Give images their rows. Adds images that only the CSV names; lines that fit no image are problems."""
        if self._table is None:
            return
        self._problems += [Problem(self._table.path, message, line) for line, message in self._table.errors]
        rows = images.rows
        for place in range(len(rows)):
            number = self._find(place, images)
            message = self._row_problem(rows, place)
            if number is None:
                other = images.find(canonical(without_suffix(self._inside(rows.image(place), images))))
                hint = f"there is {images.name(other)}: " if other is not None else ""
                message = (
                    f"image {rows.image(place)!r} is not in {images.image_root}; {hint}correct the name or remove the "
                    "line"
                )
            elif (before := images.row(number)) is not None:
                message = (
                    f"image {rows.image(place)!r} is already on line {rows.line(before)}; join or remove one of them"
                )
            else:
                images.give_row(number, place)
            if message:
                self._problems.append(Problem(self._table.path, message, rows.line(place)))

    def _find(self, place: int, images: FolderImages) -> int | None:
        """The number of a row's image, whose name is written with or without suffix."""
        inside = self._inside(images.rows.image(place), images)
        number = images.find(canonical(without_suffix(inside)))
        if number is not None and canonical(images.name(number)) == canonical(inside.rpartition("/")[2]):
            return number
        if (whole := images.find(canonical(inside))) is not None:
            return whole
        path = images.image_root / inside
        if number is None and is_regular(path) and not path.is_relative_to(self.root / "masks"):
            return images.add(inside)  # its suffix is no image's; its content decides
        return None

    def _row_problem(self, rows: LabelRows, place: int) -> str:
        mask = rows.mask(place)
        if mask and not is_regular(f"{self.root}/{mask}"):
            return f"mask {mask!r} is not in {self.root}; correct its name or empty the cell"
        if rows.split(place) == ALL:
            return f"split {ALL!r} is the name for all images; call this one train, val, test, ..."
        return ""

    def _inside(self, image: str, images: FolderImages) -> str:
        """A row's image relative to the image root."""
        if "//" in image or "./" in image or image.endswith(("/", "/.")):
            image = str(PurePosixPath(image))
        return image if images.image_root == self.root else image.removeprefix("images/")


def _listed(root: Path, table: LabelTable | None) -> tuple[PackedTexts, bool]:
    """The images below a root that are no masks, and whether all of them lie in its `images`."""
    names, inside = PackedTexts(), 0
    rows = LabelRows() if table is None else table.rows
    masks = HashIndex(((str(PurePosixPath(mask)), place) for mask, place in rows.masks()), "I")
    for name in images_below(root):
        is_mask = any(str(PurePosixPath(rows.mask(place) or "")) == name for place in masks.find(name))
        if not is_mask and not name.startswith("masks/"):
            names.append(name)
            inside += name.startswith("images/")
    return names, bool(inside) and inside == len(names)


def hash_split(name: str) -> str:
    """`val` for a fifth of all ids, else `train`; depends on the id alone."""
    digest = hashlib.blake2b(canonical(name).encode("utf-8"), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "little") < VAL_SHARE * 2**64 else "train"


def find_table(root: Path) -> Path | None:
    """`labels.csv` (or another suffix), else the only CSV, else the only spreadsheet in a folder; None without any.

    Raises:
        DataError: where there are several.
    """
    if not root.is_dir():
        return None
    tables = sorted(
        path
        for path in root.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and not path.name.startswith((".", "~$")) and not path.is_dir()
    )
    csvs = [path for path in tables if path.suffix.lower() in CSV_SUFFIXES]
    for few in ([path for path in csvs if path.stem == "labels"], csvs, tables):
        if few[1:]:
            names = ", ".join(path.name for path in few)
            raise DataError(
                f"{root}: several CSV files ({names}); name one, e.g. folder:{few[0]}, or call it labels.csv"
            )
        if few:
            return few[0]
    return None
