"""The images of a folder and what a table says of them, packed: a record is made when it is asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cpn_fast.data.sources.base import LazyRecords, canonical
from cpn_fast.data.types import Record
from cpn_fast.files.hash_index import HashIndex
from cpn_fast.files.label_rows import LabelRows
from cpn_fast.files.packed import PackedTexts
from cpn_fast.files.regular import is_regular

_NO_MASK, _MASK_BY_ID, _MASK_OF_ROW = range(3)


class FolderImages:
    """Images by their number, in some fifty bytes each beside their names.

    Args:
        root: the folder.
        names: of the images, relative to it.
        image_root: what their ids are relative to.
        rows: of the table; empty without one.
    """

    def __init__(self, root: Path, names: PackedTexts, image_root: Path, rows: LabelRows) -> None:
        self.root, self.image_root, self.rows = root, image_root, rows
        self._names = names
        self._skipped = len(image_root.name) + 1 if image_root != root else 0
        self._listed = len(names)
        self._more: dict[str, int] = {}
        self._row_of = array("I", bytes(4 * len(names)))
        self._masks = bytearray(len(names))

    def __getstate__(self) -> dict[str, Any]:
        """Without the index, which is of one process."""
        return {name: value for name, value in self.__dict__.items() if name != "_by_id"}

    def __len__(self) -> int:
        return len(self._names)

    def path(self, number: int) -> Path:
        """Of an image."""
        return self.root / self._names[number]

    def name(self, number: int) -> str:
        """Of an image's file, without its folders."""
        return self._names[number].rpartition("/")[2]

    def id(self, number: int) -> str:
        """Its path relative to the image root, without suffix."""
        return without_suffix(self._names[number][self._skipped :])

    def key(self, number: int) -> str:
        """Its id for comparison."""
        return canonical(self.id(number))

    def find(self, key: str) -> int | None:
        """The image of an id for comparison, of several the first by its name; None where there is none."""
        found = [number for number in self._by_id.find(key) if self.key(number) == key]
        return self._more.get(key) if not found else found[0] if len(found) == 1 else min(found, key=self.path)

    def add(self, inside: str) -> int:
        """An image that was not listed, by its path relative to the image root; gives its number."""
        number = len(self)
        self._names.append(f"{self.image_root.name}/{inside}" if self._skipped else inside)
        self._row_of.append(0)
        self._masks.append(_NO_MASK)
        self._more[self.key(number)] = number
        return number

    def twins(self) -> Iterator[tuple[int, int]]:
        """Images whose id one of another name has, too: (number, number of that one, which `find` gives)."""
        for numbers in self._by_id.shared():
            for number in numbers:
                other = self.find(self.key(number))
                if other is not None and other != number:
                    yield number, other

    def row(self, number: int) -> int | None:
        """The place of its row; None where it has none."""
        return self._row_of[number] - 1 if self._row_of[number] else None

    def give_row(self, number: int, place: int) -> None:
        """A row is of an image."""
        self._row_of[number] = place + 1

    def labels(self, number: int) -> tuple[int, ...] | None:
        """As of a record."""
        place = self.row(number)
        return None if place is None else self.rows.labels(place)

    def find_mask(self, number: int, by_id: bool) -> None:
        """Look whether its mask is there; `by_id`: also one of its id."""
        place = self.row(number)
        named = None if place is None else self.rows.mask(place)
        if named:
            self._masks[number] = _MASK_OF_ROW if is_regular(f"{self.root}/{named}") else _NO_MASK
        elif by_id and is_regular(self._mask_by_id(number)):
            self._masks[number] = _MASK_BY_ID

    def has_mask(self, number: int) -> bool:
        """Whether its mask was there."""
        return self._masks[number] != _NO_MASK

    def record(self, number: int) -> Record:
        """Of an image."""
        place, kind = self.row(number), self._masks[number]
        mask = None
        if kind == _MASK_OF_ROW and place is not None:
            mask = self.root / (self.rows.mask(place) or "")
        elif kind == _MASK_BY_ID:
            mask = Path(self._mask_by_id(number))
        return Record(self.id(number), self.path(number), self.labels(number), mask)

    def _mask_by_id(self, number: int) -> str:
        return f"{self.root}/masks/{self.id(number)}.png"

    @cached_property
    def _by_id(self) -> HashIndex:
        """The images that were listed."""
        return HashIndex(((self.key(number), number) for number in range(self._listed)), "I")


def without_suffix(name: str) -> str:
    """A path with forward slashes, as `PurePosixPath` writes it, without the suffix of its last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.rpartition(".")
    return f"{folder}{slash}{stem}" if stem and ending else name


class FolderRecords(LazyRecords):
    """The records of a split.

    Args:
        images: of the folder.
        numbers: of those in the split.
    """

    def __init__(self, images: FolderImages, numbers: Sequence[int]) -> None:
        self.images, self.numbers = images, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return FolderRecords(self.images, self.numbers[place])
        return self.images.record(self.numbers[place])

    def any_mask(self) -> bool:
        """Whether any image has a mask."""
        return any(map(self.images.has_mask, self.numbers))

    def find(self, image_id: str) -> Record | None:
        """The record of an id, of whatever split; None where there is none."""
        number = self.images.find(canonical(image_id))
        return None if number is None else self.images.record(number)
