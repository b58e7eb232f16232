"""A folder of images with a table of image labels, or without any labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from cpn_fast.data.sources.base import FileSource, Problem, Scan, canonical, unread_masks
from cpn_fast.data.sources.split_names import unusual_splits
from cpn_fast.data.types import Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, list_images
from cpn_fast.files.labels_csv import LabelRow, read_label_table
from cpn_fast.files.masks import read_classes
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
        table_path = path if path.is_file() else find_table(path)
        named = self.root / "classes.txt"
        classes = read_classes(named) if named.exists() else None
        self._table = read_label_table(table_path, classes) if table_path else None
        self._classes = self._table.classes if self._table else classes or ()
        mask_root = self.root / "masks"
        masks = {self.root / row.mask for row in self._table.rows if row.mask} if self._table else set()
        self._images = [
            image for image in list_images(self.root) if not _is_below(image, mask_root) and image not in masks
        ]
        if not self._images and not self._table:
            raise DataError(f"{path}: no images (by suffix) in it or in its folders")
        images = self.root / "images"
        inside = bool(self._images) and all(_is_below(image, images) for image in self._images)
        self._image_root = images if inside else self.root
        self._by_split: dict[str, list[Record]] | None = None
        self._problems: list[Problem] = []
        self._rows: dict[str, LabelRow] = {}

    @property
    def description(self) -> str:
        """The kind of source, and what was understood of its table."""
        if self._table is None:
            return "a folder of images without labels"
        return f"a folder of images with {self._table.path.name} ({self._table.form})"

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
        unlabelled = [record.id for record in by_split[ALL] if record.labels is None]
        notes = self._table.notes if self._table else ()
        if self._table is not None and unlabelled:
            notes += (f"images without labels in {self._table.path}: {len(unlabelled)}, e.g. {unlabelled[0]}",)
        if self._table is not None and self._table.has_splits:
            named = {name: len(records) for name, records in by_split.items() if name != ALL}
            notes += unusual_splits(named, self._table.path)
        warnings = unread_masks(self.root / "masks", by_split[ALL])
        return Scan(tuple(by_split[split]), tuple(self._problems), notes, warnings)

    def first(self, count: int, splits: Mapping[str, Sequence[Record]]) -> list[tuple[str, Record]]:
        """The images of the table's first lines; without a table the first images."""
        if self._table is None:
            return super().first(count, splits)
        records = {canonical(record.id): record for split in splits.values() for record in split}
        lines = [(self._table.path.name, row.line, records[key]) for key, row in self._rows.items() if key in records]
        return [(f"{name}, line {line}", record) for name, line, record in lines[:count]]

    def _sorted_out(self) -> dict[str, list[Record]]:
        """Records by split, worked out once; fills `_problems`."""
        if self._by_split is None:
            images = self._images_by_id()
            rows = self._rows = self._rows_by_id(images)
            splits: dict[str, list[Record]] = {}
            for name, image in sorted(images.items()):
                row = rows.get(name)
                record = self._record(image, row)
                splits.setdefault(ALL, []).append(record)
                split = row.split if row else None
                if self._table is not None and not self._table.has_splits and record.labels is not None:
                    split = hash_split(record.id)
                if split and split != ALL:
                    splits.setdefault(split, []).append(record)
            everything = splits.pop(ALL, [])
            self._by_split = {**dict(sorted(splits.items())), ALL: everything}
        return self._by_split

    def _images_by_id(self) -> dict[str, Path]:
        """Canonical id -> image. A second image of one id is a problem."""
        images: dict[str, Path] = {}
        for image in self._images:
            key = canonical(self._id(image))
            if key in images:
                self._problems.append(Problem(image, f"the same id {key!r} as {images[key]}; rename or remove one"))
            else:
                images[key] = image
        return images

    def _rows_by_id(self, images: dict[str, Path]) -> dict[str, LabelRow]:
        """Canonical id -> row of the CSV. Adds images that only the CSV names; lines that fit no image are problems."""
        if self._table is None:
            return {}
        self._problems += [Problem(self._table.path, message, line) for line, message in self._table.errors]
        rows: dict[str, LabelRow] = {}
        for row in self._table.rows:
            key = self._find(row, images)
            message = self._row_problem(row)
            if key is None:
                other = images.get(canonical(_without_suffix(self._inside(row))))
                hint = f"there is {other.name}: " if other else ""
                message = f"image {row.image!r} is not in {self._image_root}; {hint}correct the name or remove the line"
            elif key in rows:
                message = f"image {row.image!r} is already on line {rows[key].line}; join or remove one of them"
            else:
                rows[key] = row
            if message:
                self._problems.append(Problem(self._table.path, message, row.line))
        return rows

    def _find(self, row: LabelRow, images: dict[str, Path]) -> str | None:
        """The id of the row's image, whose name is written with or without suffix."""
        inside = self._inside(row)
        key = canonical(_without_suffix(inside))
        if key in images and canonical(images[key].name) == canonical(PurePosixPath(inside).name):
            return key
        if canonical(inside) in images:
            return canonical(inside)
        path = self._image_root / inside
        if key not in images and is_regular(path) and not path.is_relative_to(self.root / "masks"):
            images[key] = path  # its suffix is no image's; its content decides
            return key
        return None

    def _row_problem(self, row: LabelRow) -> str:
        if row.mask and not is_regular(self.root / row.mask):
            return f"mask {row.mask!r} is not in {self.root}; correct its name or empty the cell"
        if row.split == ALL:
            return f"split {ALL!r} is the name for all images; call this one train, val, test, ..."
        return ""

    def _inside(self, row: LabelRow) -> str:
        """The row's image relative to the image root."""
        return row.image if self._image_root == self.root else row.image.removeprefix("images/")

    def _record(self, image: Path, row: LabelRow | None) -> Record:
        name = self._id(image)
        mask = self.root / (row.mask if row and row.mask else f"masks/{name}.png")
        return Record(name, image, row.labels if row else None, mask if is_regular(mask) else None)

    def _id(self, image: Path) -> str:
        inside = str(image)[len(str(self._image_root)) + 1 :] if str(self._image_root) != "." else str(image)
        folder, slash, name = inside.rpartition("/")
        stem, _, ending = name.rpartition(".")
        return f"{folder}{slash}{stem}" if stem and ending else inside


def _is_below(path: Path, folder: Path) -> bool:
    return str(path).startswith(f"{folder}/")


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


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name
