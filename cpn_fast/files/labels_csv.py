"""Image labels from a CSV file: `image,labels[,split][,mask]`, several labels separated by `;`."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath

from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import check_class_count
from cpn_fast.files.names import class_fault, path_fault, quoted
from cpn_fast.files.text import read_text

_COLUMNS = ("image", "labels", "split", "mask")
_BACKGROUND = "background"


@dataclass(frozen=True)
class LabelRow:
    """One image of the file.

    Attributes:
        image: the file name as written, with forward slashes.
        labels: sorted class indices; None where the cell is empty (nobody has said what is in the image).
        line: line number from 1.
        split: the split cell; None without that column.
        mask: the mask cell; None without that column or where it is empty.
    """

    image: str
    labels: tuple[int, ...] | None
    line: int
    split: str | None = None
    mask: str | None = None


@dataclass(frozen=True)
class LabelTable:
    """A label file that has been read.

    Attributes:
        path: the file.
        classes: the K foreground class names; the given ones, else those in the file, sorted.
        rows: one per image, in file order.
        errors: lines that cannot be used: (line, what is wrong and what to do).
    """

    path: Path
    classes: tuple[str, ...]
    rows: tuple[LabelRow, ...]
    errors: tuple[tuple[int, str], ...] = ()
    _by_name: dict[str, LabelRow] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for row in self.rows:
            self._by_name.setdefault(_key(row.image), row)

    @cached_property
    def has_splits(self) -> bool:
        """Whether the file has a split column."""
        return any(row.split is not None for row in self.rows)

    def find(self, image: str | Path) -> LabelRow | None:
        """The row of an image, by its relative path, or by that without suffix; None if there is none."""
        name = PurePosixPath(str(image))
        return self._by_name.get(_key(str(name))) or self._by_name.get(_key(str(name.with_suffix(""))))


def read_labels_csv(
    path: str | Path, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...] | None], dict[str, str]]:
    """Read a label file of which every line must be right.

    Args:
        path: UTF-8 CSV with a header; columns image, labels and optionally split and mask.
        classes: the K foreground class names that may appear; None = whatever the file names, sorted.

    Returns:
        The class names; image as written -> sorted class indices 0..K-1 (None where the cell is empty, () where it says
        `background`); image -> split (empty without that column).

    Raises:
        DataError: naming file and line, as `read_label_table`, and for the first line that cannot be used.
    """
    table = read_label_table(path, classes)
    if table.errors:
        line, message = table.errors[0]
        more = f" ({len(table.errors) - 1} more lines like this)" if len(table.errors) > 1 else ""
        raise DataError(f"{table.path}, line {line}: {message}{more}")
    labels = {row.image: row.labels for row in table.rows}
    return table.classes, labels, {row.image: row.split for row in table.rows if row.split is not None}


def read_label_table(path: str | Path, classes: Sequence[str] | None = None) -> LabelTable:
    """Read a label file and keep what is wrong with single lines as `errors`.

    A line whose image is a duplicate, or which names an unknown class, gives no row. `background` as a label says that
    none of the classes is in the image.

    Args:
        path: UTF-8 CSV with a header.
        classes: the K foreground class names that may appear; None = whatever the file names, sorted.

    Raises:
        DataError: if the file cannot be read as a whole: missing, not UTF-8, no such columns, more than 254 classes.
    """
    path = Path(path)
    lines = list(_lines(path))
    if classes is None:
        found = {name for _, cells in lines for name in _names(cells["labels"])} - {_BACKGROUND}
        named = {name for name in found if not class_fault(name)}
        classes = tuple(sorted(named))
    check_class_count(classes, str(path))
    index = {unicodedata.normalize("NFC", name): number for number, name in enumerate(classes)}
    rows: list[LabelRow] = []
    errors: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    for line, cells in lines:
        message, row = _row(line, cells, index)
        if row is not None and _key(row.image) in seen:
            message = f"image {row.image!r} is already on line {seen[_key(row.image)]}; join or remove one of them"
        if message or row is None:
            errors.append((line, message))
            continue
        seen[_key(row.image)] = line
        rows.append(row)
    return LabelTable(path, tuple(classes), tuple(rows), tuple(errors))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> stripped cell) of every line that is not blank."""
    text = read_text(path, "a CSV with the columns image,labels[,split][,mask]")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        _check_header(header, path)
        start = reader.line_num + 1
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {line}: {len(cells)} cells, expected {len(header)} ({','.join(header)}); separate "
                    "labels by `;` and put names that hold a comma in double quotes"
                )
            yield line, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a CSV line ({error}); check its quotes") from None


def _check_header(header: list[str], path: Path) -> None:
    missing = [name for name in ("image", "labels") if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    if missing or twice:
        found = f"no column {' and '.join(missing)}" if missing else f"column {twice[0]} twice"
        raise DataError(
            f"{path}, line 1: {found} in the header {quoted(','.join(header), 200)}; expected "
            "image,labels[,split][,mask], separated by commas"
        )


def _row(line: int, cells: dict[str, str], index: dict[str, int]) -> tuple[str, LabelRow | None]:
    """The row, or what is wrong with it."""
    image, mask = (cells.get(name, "").replace("\\", "/").removeprefix("./") for name in ("image", "mask"))
    names = _names(cells["labels"])
    unknown = [name for name in names if name not in index and name != _BACKGROUND]
    if not image:
        return "no image name in the first cell; write the file's path relative to the folder", None
    for column, name in (("image", image), ("mask", mask)):
        if name and (fault := path_fault(name)):
            return f"{column} {quoted(name)} {fault}; write its path relative to the folder", None
    for name in names:
        if fault := class_fault(name):
            return f"label {quoted(name)} {fault}; separate labels by `;` and check the quotes", None
    if unknown:
        near = get_close_matches(unknown[0], index, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "correct it, or add it to the list of classes"
        known = ", ".join(list(index)[:20]) + (", ..." if len(index) > 20 else "")
        return f"unknown class {unknown[0]!r}; known are {known}; {hint}", None
    if "split" in cells and not cells["split"]:
        return "the split cell is empty; write train, val, ... or leave the column out of the file", None
    if "split" in cells and (fault := class_fault(cells["split"])):
        return f"split {quoted(cells['split'])} {fault}; write train, val, ...", None
    labels = tuple(sorted({index[name] for name in names if name != _BACKGROUND})) if names else None
    return "", LabelRow(image, labels, line, cells.get("split"), mask or None)


def _names(cell: str) -> list[str]:
    return [unicodedata.normalize("NFC", name.strip()) for name in cell.split(";") if name.strip()]


def _key(image: str) -> str:
    return unicodedata.normalize("NFC", image)
