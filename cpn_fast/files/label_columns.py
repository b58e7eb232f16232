"""What the columns and the cells of a table of image labels mean."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.names import class_fault, quoted
from cpn_fast.files.table import Table

NAMES = {
    "image": ("image", "filename", "file", "path", "file_name", "image_name", "image_path"),
    "labels": ("labels", "label", "class", "tags", "classes", "tag"),
    "split": ("split",),
    "mask": ("mask", "mask_file_name"),
}
"""Role -> names of its column in lower case; the first one wins over the others."""

BACKGROUND = "background"

_TRUE = frozenset(("1", "1.0", "true", "yes", "x"))
_FALSE = frozenset(("0", "0.0", "false", "no", ""))
_JOINTS = re.compile(r"[,|]")


@dataclass(frozen=True)
class Columns:
    """Where to find what.

    Attributes:
        places: role -> number of the column.
        one_hot: number of the column -> class, where each class has a column of 0 and 1; empty otherwise.
        unread: names of the other columns.
    """

    places: dict[str, int]
    one_hot: dict[int, str]
    unread: tuple[str, ...]

    def describe(self, header: Sequence[str]) -> str:
        """For example "image in 'filename', labels in 'class'"."""
        parts = [f"{role} in {header[place]!r}" for role, place in self.places.items()]
        if self.one_hot:
            parts.append(f"{len(self.one_hot)} columns of 0 and 1, one per class")
        return ", ".join(parts)


def find_columns(table: Table, path: Path) -> Columns:
    """Tell the columns of a table of labels by their names, and where none holds labels by their 0 and 1.

    Raises:
        DataError: if image or labels are missing, a name comes twice, or two columns could be the same.
    """
    names = [re.sub(r"[\s-]+", "_", name.lower()) for name in table.header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: column {twice[0]} twice in the header {_shown(table)}; remove or rename one")
    places: dict[str, int] = {}
    for role, known in NAMES.items():
        found = [name for name in known if name in names]
        if len(found) > 1 and found[0] != role:
            raise DataError(
                f"{path}, line 1: the columns {' and '.join(found)} could each be the {role}; call one of them {role}"
            )
        if found:
            places[role] = names.index(found[0])
    rest = [place for place in range(len(names)) if place not in places.values()]
    one_hot: dict[int, str] = {}
    if "labels" not in places and "image" in places:
        one_hot = {place: table.header[place] for place in rest if _is_one_hot(table, place)}
        for name in one_hot.values():
            if fault := class_fault(name):
                raise DataError(f"{path}, line 1: the column {quoted(name)} {fault}; give it the name of its class")
    missing = [role for role in ("image", "labels") if role not in places and not (role == "labels" and one_hot)]
    if missing:
        raise DataError(
            f"{path}, line 1: no column {' and '.join(missing)} in the header {_shown(table)}; expected "
            "image,labels[,split][,mask] (also filename, file or path; label, class or tags), or image and a column of "
            "0 and 1 for each class"
        )
    unread = tuple(table.header[place] for place in rest if place not in one_hot and table.header[place])
    return Columns(places, one_hot, unread)


def _shown(table: Table) -> str:
    return quoted(",".join(table.header), 200)


def _is_one_hot(table: Table, place: int) -> bool:
    """Whether most cells of a column are 0 or 1; the others are then errors of their lines."""
    cells = [row[place].lower() for _, row in table.rows]
    filled = [cell for cell in cells if cell]
    return bool(filled) and 2 * sum(cell in _TRUE or cell in _FALSE for cell in filled) > len(filled)


def one_hot_names(cells: Sequence[str], columns: Columns) -> tuple[list[str] | None, str]:
    """The classes whose cell is 1; None where all cells are empty. Then what is wrong with the row, "" for nothing."""
    marks = {name: cells[place].lower() for place, name in columns.one_hot.items()}
    odd = next((name for name, mark in marks.items() if mark not in _TRUE and mark not in _FALSE), None)
    if odd is not None:
        return None, f"column {quoted(odd)} holds {quoted(marks[odd])}; expected 0 or 1"
    if not any(marks.values()):
        return None, ""
    return [normal(name) for name, mark in marks.items() if mark in _TRUE and name != BACKGROUND] or [BACKGROUND], ""


def split_cells(cells: Sequence[str], classes: Sequence[str] | None) -> tuple[list[list[str]], list[str]]:
    """The names in cells of labels, and notes on how they were told apart.

    `;` always separates. `["cat", "dog"]` is a list. `cat, dog` and `cat|dog` are several names only where that is
    plain: by the given classes, or since in each such cell a name stands alone elsewhere or in another combination.

    Args:
        cells: the texts.
        classes: the class names that may appear; None = any.
    """
    parts = [_listed(cell) or [name.strip() for name in cell.split(";") if name.strip()] for cell in cells]
    names = [[normal(name) for name in row] for row in parts]
    joined = {name for row in names for name in row if len(_pieces(name)) > 1}
    alone = {name for row in names for name in row} - joined
    if classes is not None:
        known = set(map(normal, classes))
        cut = {name for name in joined - known if all(piece in known for piece in _pieces(name))}
    else:
        cut = joined if joined and _plain(joined, alone) else set()
    if not cut:
        return names, []
    count = sum(any(name in cut for name in row) for row in names)
    example = min(cut)
    note = (
        f"{count} cells such as {example!r} are read as several labels ({', '.join(_pieces(example))}); if that is one "
        "class, list it in classes.txt"
    )
    return [[piece for name in row for piece in (_pieces(name) if name in cut else [name])] for row in names], [note]


def _plain(joined: set[str], alone: set[str]) -> bool:
    combinations: dict[str, int] = defaultdict(int)
    for name in joined:
        for piece in set(_pieces(name)):
            combinations[piece] += 1
    return all(any(piece in alone or combinations[piece] > 1 for piece in _pieces(name)) for name in joined)


def _pieces(name: str) -> list[str]:
    return [piece.strip() for piece in _JOINTS.split(name) if piece.strip()]


def _listed(cell: str) -> list[str] | None:
    """The texts of `["cat", "dog"]`, as JSON and pandas write it; None for anything else."""
    if not (cell.startswith("[") and cell.endswith("]") and len(cell) < 10_000):
        return None
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return [name.strip() for name in found] if found and all(isinstance(name, str) for name in found) else None


def normal(name: str) -> str:
    """A name for comparison, in NFC."""
    return unicodedata.normalize("NFC", name)
