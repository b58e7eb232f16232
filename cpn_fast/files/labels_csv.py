"""Image labels from a CSV or a spreadsheet: `image,labels[,split][,mask]`, or a column of 0 and 1 for each class."""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from cpn_fast.files.errors import DataError
from cpn_fast.files.hash_index import HashIndex
from cpn_fast.files.label_columns import BACKGROUND, Columns, LabelCells, find_columns, normal, one_hot_names
from cpn_fast.files.label_rows import LabelRow, LabelRows
from cpn_fast.files.masks import check_class_count
from cpn_fast.files.names import class_fault, path_fault, quoted
from cpn_fast.files.table import Table, read_table


@dataclass(frozen=True)
class LabelTable:
    """A label file that has been read.

    Attributes:
        path: the file.
        classes: the K foreground class names; the given ones, else those in the file, sorted.
        rows: one per image, in file order.
        errors: lines that cannot be used: (line, what is wrong and what to do).
        notes: what was guessed, or is not read.
        form: what the file is and which columns hold what.
    """

    path: Path
    classes: tuple[str, ...]
    rows: LabelRows
    errors: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    form: str = ""

    @property
    def has_splits(self) -> bool:
        """Whether the file has a split column."""
        return self.rows.has_splits

    def find(self, image: str | Path) -> LabelRow | None:
        """The row of an image, by its relative path, or by that without suffix; None if there is none."""
        name = PurePosixPath(str(image))
        return self._called(normal(str(name))) or self._called(normal(str(name.with_suffix(""))))

    def _called(self, name: str) -> LabelRow | None:
        places = (place for place in self._by_name.find(name) if normal(self.rows.image(place)) == name)
        return next((self.rows[place] for place in places), None)

    @cached_property
    def _by_name(self) -> HashIndex:
        return _by_name(self.rows)


def _by_name(rows: LabelRows) -> HashIndex:
    """Places of rows by their images."""
    return HashIndex(((normal(rows.image(place)), place) for place in range(len(rows))), "I")


def read_labels_csv(
    path: str | Path, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...] | None], dict[str, str]]:
    """Read a label file of which every line must be right.

    Args:
        path: as of `read_label_table`.
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

    A line which names an unknown class gives no row. Lines of one image are joined. `background` as a label says that
    none of the classes is in the image. Absolute paths within the file's folder become relative to it.

    Args:
        path: CSV (commas, semicolons or tabs; UTF-8, UTF-16 or Windows-1252) or spreadsheet with a header.
        classes: the K foreground class names that may appear; None = whatever the file names, sorted.

    Raises:
        DataError: if the file cannot be read as a whole: missing, of an unknown encoding, no such columns, more than
            254 classes.
    """
    path = Path(path)
    table = read_table(
        path,
        "a CSV with the columns image,labels[,split][,mask]",
        "separate labels by `;` and put names that hold a comma in double quotes",
    )
    columns = find_columns(table, path)
    cells = None if columns.one_hot else LabelCells(_cells(table, columns.places["labels"]), classes)
    found = cells.found if cells is not None else frozenset(map(normal, columns.one_hot.values()))
    if classes is None:
        classes = tuple(sorted(name for name in found - {BACKGROUND} if not class_fault(name)))
    check_class_count(classes, str(path))
    index = {normal(name): number for number, name in enumerate(classes)}
    _check_some_known(found - {BACKGROUND}, index, path)
    lines, errors = LabelRows(), list[tuple[int, str]]()
    for line, row in table.rows:
        message, made = _row(line, row, columns, cells, index, path.parent)
        if made is None:
            errors.append((line, message))
        else:
            lines.append(made)
    rows, joined, faults = _one_an_image(lines)
    read = [] if cells is None else [f"{path}: {note}" for note in cells.notes]
    notes = [*table.notes, *read, *_notes(path, columns, joined)]
    form = f"{table.form}; {columns.describe(table.header)}"
    return LabelTable(path, tuple(classes), rows, tuple(sorted(errors + faults)), tuple(notes), form)


def _cells(table: Table, place: int) -> Iterator[str]:
    return (cells[place] for _, cells in table.rows)


@dataclass(frozen=True)
class _Joined:
    """Images with several lines: how many, and the first of them whose second line comes."""

    count: int = 0
    example: str = ""


def _one_an_image(lines: LabelRows) -> tuple[LabelRows, _Joined, list[tuple[int, str]]]:
    """The rows with those of one image joined; what was joined; what speaks against it, by line."""
    following = _following(lines)
    if following is None:
        return lines, _Joined(), []
    rows, faults = LabelRows(), list[tuple[int, str]]()
    later = np.zeros(len(lines), bool)
    later[np.frombuffer(following, np.dtype(following.typecode))] = True
    later[0] = False  # 0 stands for none
    count, second, example = 0, len(lines), ""
    for place in np.flatnonzero(~later).tolist():
        row, other = lines[place], following[place]
        if other:
            count += 1
            if other < second:
                second, example = other, f"{row.image!r} (line {row.line})"
        while other:
            message, both = _joined(row, lines[other])
            if both is None:
                faults.append((lines[other].line, message))
            row, other = both or row, following[other]
        rows.append(row)
    return rows, _Joined(count, example), faults


def _following(lines: LabelRows) -> array[int] | None:
    """Of every row the place of the next one on its image, 0 for none; None where no image has two."""
    found: array[int] | None = None
    for places in _by_name(lines).shared():
        last: dict[str, int] = {}
        for place in places:
            name = normal(lines.image(place))
            if name in last:
                found = array("I", bytes(4 * len(lines))) if found is None else found
                found[last[name]] = place
            last[name] = place
    return found


def _joined(first: LabelRow, second: LabelRow) -> tuple[str, LabelRow | None]:
    """One row of two lines on the same image, or what speaks against it."""
    for column in ("split", "mask"):
        values = [value for row in (first, second) if (value := getattr(row, column)) is not None]
        if len(set(values)) > 1:
            return (
                f"image {first.image!r} is already on line {first.line}, there with the {column} {values[0]!r} and "
                f"here {values[1]!r}; make them equal or remove one"
            ), None
    both = [row.labels for row in (first, second) if row.labels is not None]
    if () in both and any(both):
        return (
            f"image {first.image!r} is already on line {first.line}, one of both says background and the other a "
            "class; remove one"
        ), None
    labels = tuple(sorted({label for labels in both for label in labels})) if both else None
    return "", replace(first, labels=labels, mask=first.mask or second.mask)


def _notes(path: Path, columns: Columns, joined: _Joined) -> list[str]:
    notes = []
    if joined.count:
        notes.append(
            f"{path}: images with several lines, whose labels are joined: {joined.count}, e.g. {joined.example}"
        )
    if columns.unread:
        shown = ", ".join(map(repr, columns.unread[:8])) + (", ..." if len(columns.unread) > 8 else "")
        notes.append(f"{path}: columns that are not read: {shown}")
    return notes


def _row(
    line: int, row: Sequence[str], columns: Columns, labels: LabelCells | None, index: dict[str, int], root: Path
) -> tuple[str, LabelRow | None]:
    """The row of a line's cells, or what is wrong with it."""
    cells = {role: row[place] for role, place in columns.places.items()}
    if labels is None:
        names, fault = one_hot_names(row, columns)
        if fault:
            return fault, None
    else:
        names = labels.names(cells["labels"]) or None
    image, mask = (_relative(cells.get(name, ""), root) for name in ("image", "mask"))
    if not image:
        return "no image name in its cell; write the file's path relative to the folder", None
    for column, name in (("image", image), ("mask", mask)):
        if name and (fault := path_fault(name)):
            return f"{column} {quoted(name)} {fault}; write its path relative to the folder", None
    for name in names or ():
        if fault := class_fault(name):
            return f"label {quoted(name)} {fault}; separate labels by `;` and check the quotes", None
    unknown = [name for name in names or () if name not in index and name != BACKGROUND]
    if unknown:
        near = get_close_matches(unknown[0], index, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "correct it, or add it to the list of classes"
        known = ", ".join(list(index)[:20]) + (", ..." if len(index) > 20 else "")
        return f"unknown class {unknown[0]!r}; known are {known}; {hint}", None
    if "split" in cells and not cells["split"]:
        return "the split cell is empty; write train, val, ... or leave the column out of the file", None
    if "split" in cells and (fault := class_fault(cells["split"])):
        return f"split {quoted(cells['split'])} {fault}; write train, val, ...", None
    numbers = None if names is None else tuple(sorted({index[name] for name in names if name != BACKGROUND}))
    return "", LabelRow(image, numbers, line, cells.get("split"), mask or None)


def _check_some_known(found: Collection[str], known: Collection[str], path: Path) -> None:
    """Raise DataError where a file has labels of several classes, all of them others than the known ones."""
    if len(found) > 1 and known and not any(get_close_matches(name, known) for name in found):
        shown = ", ".join([*known][:10]) + (f", ... ({len(known)} in all)" if len(known) > 10 else "")
        raise DataError(
            f"{path}: none of its {len(found)} labels, such as {quoted(min(found))}, is one of the known classes, "
            f"{shown}: it is of other classes; correct the labels, or the list of classes (classes.txt)"
        )


def _relative(name: str, root: Path) -> str:
    """A path with forward slashes, relative to the root where it is an absolute one within it."""
    name = name.replace("\\", "/").removeprefix("./")
    if name.startswith("/"):
        for base in dict.fromkeys((os.path.abspath(root), os.path.realpath(root))):
            if name.startswith(f"{base}/"):
                return name[len(base) + 1 :]
    return name
