"""What the columns and the cells of a table of image labels mean."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
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
        one_hot = {place: table.header[place] for place in _one_hot_places(table, rest)}
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


def _one_hot_places(table: Table, places: Sequence[int]) -> list[int]:
    """The columns of which most cells are 0 or 1; the others are then errors of their lines."""
    filled, marks = Counter[int](), Counter[int]()
    for _, row in table.rows:
        for place in places:
            if cell := row[place].lower():
                filled[place] += 1
                marks[place] += cell in _TRUE or cell in _FALSE
    return [place for place in places if filled[place] and 2 * marks[place] > filled[place]]


def one_hot_names(cells: Sequence[str], columns: Columns) -> tuple[tuple[str, ...] | None, str]:
    """The classes whose cell is 1; None where all cells are empty. Then what is wrong with the row, "" for nothing."""
    marks = {name: cells[place].lower() for place, name in columns.one_hot.items()}
    odd = next((name for name, mark in marks.items() if mark not in _TRUE and mark not in _FALSE), None)
    if odd is not None:
        return None, f"column {quoted(odd)} holds {quoted(marks[odd])}; expected 0 or 1"
    if not any(marks.values()):
        return None, ""
    return tuple(normal(name) for name, mark in marks.items() if mark in _TRUE and name != BACKGROUND) or (
        BACKGROUND,
    ), ""


class LabelCells:
    """The names in cells of labels.

    `;` always separates. `["cat", "dog"]` is a list. `cat, dog` and `cat|dog` are several names only where that is
    plain: by the given classes, or since in each such cell a name stands alone elsewhere or in another combination.

    Args:
        cells: the texts, gone through once.
        classes: the class names that may appear; None = any.
    """

    def __init__(self, cells: Iterable[str], classes: Sequence[str] | None) -> None:
        whole: set[str] = set()
        joints: Counter[frozenset[str]] = Counter()
        for cell in cells:
            names = _separated(cell)
            whole.update(names)
            if joined := frozenset(name for name in names if _JOINTS.search(name) and len(_pieces(name)) > 1):
                joints[joined] += 1
        joined = frozenset(name for names in joints for name in names)
        if classes is not None:
            known = set(map(normal, classes))
            cut = {name for name in joined - known if all(piece in known for piece in _pieces(name))}
        else:
            cut = set(joined) if joined and _plain(joined, whole - joined) else set()
        self._cut, self._count = cut, sum(count for names, count in joints.items() if names & cut)
        self.found = frozenset(whole - cut).union(*map(_pieces, cut))
        """All names."""

    def names(self, cell: str) -> tuple[str, ...]:
        """Those of a cell, in its order."""
        names = _separated(cell)
        if self._cut.isdisjoint(names):
            return names
        return tuple(piece for name in names for piece in (_pieces(name) if name in self._cut else [name]))

    @property
    def notes(self) -> list[str]:
        """On how they were told apart."""
        if not self._cut:
            return []
        example = min(self._cut)
        return [
            f"{self._count} cells such as {example!r} are read as several labels ({', '.join(_pieces(example))}); if "
            "that is one class, list it in classes.txt"
        ]


def _separated(cell: str) -> tuple[str, ...]:
    """The names between the `;` of a cell, or of the list in it."""
    return _of_short(cell) if len(cell) < 200 else _of_any(cell)


def _of_any(cell: str) -> tuple[str, ...]:
    names = _listed(cell) or [name.strip() for name in cell.split(";") if name.strip()]
    return tuple(map(normal, names))


_of_short = lru_cache(maxsize=1 << 14)(_of_any)


def _plain(joined: Set[str], alone: Set[str]) -> bool:
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
