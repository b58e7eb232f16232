"""Image labels from a CSV or a spreadsheet: `image,labels[,split][,mask]`, or a column of 0 and 1 for each class."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath

from cpn_fast.files.errors import DataError
from cpn_fast.files.label_columns import BACKGROUND, Columns, find_columns, normal, one_hot_names, split_cells
from cpn_fast.files.masks import check_class_count
from cpn_fast.files.names import class_fault, path_fault, quoted
from cpn_fast.files.table import Table, read_table


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
        notes: what was guessed, or is not read.
        form: what the file is and which columns hold what.
    """

    path: Path
    classes: tuple[str, ...]
    rows: tuple[LabelRow, ...]
    errors: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    form: str = ""
    _by_name: dict[str, LabelRow] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for row in self.rows:
            self._by_name.setdefault(normal(row.image), row)

    @cached_property
    def has_splits(self) -> bool:
        """Whether the file has a split column."""
        return any(row.split is not None for row in self.rows)

    def find(self, image: str | Path) -> LabelRow | None:
        """The row of an image, by its relative path, or by that without suffix; None if there is none."""
        name = PurePosixPath(str(image))
        return self._by_name.get(normal(str(name))) or self._by_name.get(normal(str(name.with_suffix(""))))


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
    named, faults, notes = _names_of(table, columns, classes)
    found = {name for names in named for name in names or ()} | set(map(normal, columns.one_hot.values()))
    if classes is None:
        classes = tuple(sorted(name for name in found - {BACKGROUND} if not class_fault(name)))
    check_class_count(classes, str(path))
    index = {normal(name): number for number, name in enumerate(classes)}
    _check_some_known(found - {BACKGROUND}, index, path)
    rows: dict[str, LabelRow] = {}
    errors: list[tuple[int, str]] = []
    joined: list[LabelRow] = []
    for (line, cells), names, fault in zip(table.rows, named, faults, strict=True):
        found_cells = {role: cells[place] for role, place in columns.places.items()}
        message, row = (fault, None) if fault else _row(line, found_cells, names, index, path.parent)
        if row is not None and (other := rows.get(normal(row.image))) is not None:
            message, row = _joined(other, row)
            joined.append(other)
        if message or row is None:
            errors.append((line, message))
        else:
            rows[normal(row.image)] = row
    notes = [*table.notes, *(f"{path}: {note}" for note in notes), *_notes(path, columns, joined)]
    form = f"{table.form}; {columns.describe(table.header)}"
    return LabelTable(path, tuple(classes), tuple(rows.values()), tuple(errors), tuple(notes), form)


def _names_of(
    table: Table, columns: Columns, classes: Sequence[str] | None
) -> tuple[list[list[str] | None], list[str], list[str]]:
    """Of every row its label names (None: nobody has said) and what is wrong with it; notes."""
    if columns.one_hot:
        read = [one_hot_names(cells, columns) for _, cells in table.rows]
        return [names for names, _ in read], [fault for _, fault in read], []
    split, notes = split_cells([cells[columns.places["labels"]] for _, cells in table.rows], classes)
    return [names or None for names in split], [""] * len(split), notes


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


def _notes(path: Path, columns: Columns, joined: Sequence[LabelRow]) -> list[str]:
    notes = []
    if joined:
        count = len({row.line for row in joined})
        example = f"{joined[0].image!r} (line {joined[0].line})"
        notes.append(f"{path}: images with several lines, whose labels are joined: {count}, e.g. {example}")
    if columns.unread:
        shown = ", ".join(map(repr, columns.unread[:8])) + (", ..." if len(columns.unread) > 8 else "")
        notes.append(f"{path}: columns that are not read: {shown}")
    return notes


def _row(
    line: int, cells: dict[str, str], names: list[str] | None, index: dict[str, int], root: Path
) -> tuple[str, LabelRow | None]:
    """The row, or what is wrong with it."""
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
    labels = None if names is None else tuple(sorted({index[name] for name in names if name != BACKGROUND}))
    return "", LabelRow(image, labels, line, cells.get("split"), mask or None)


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
