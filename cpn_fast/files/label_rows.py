"""The rows of a table of image labels, packed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cpn_fast.files.packed import Packed, PackedTexts

_UNLABELLED = b"\xff"
"""Stands for labels that nobody has said; no class has this number."""


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


class LabelRows(Sequence[LabelRow]):
    """Rows in some twenty bytes each beside their names; a row is made when it is asked for."""

    def __init__(self) -> None:
        self._images, self._labels = PackedTexts(), Packed()
        self._lines, self._splits = array("I"), array("I")
        self._split_numbers: dict[str, int] = {}
        self._split_names: list[str] = []
        self._masks: PackedTexts | None = None

    def append(self, row: LabelRow) -> None:
        """Add one."""
        self._images.append(row.image)
        self._labels.append(_UNLABELLED if row.labels is None else bytes(row.labels))
        self._lines.append(row.line)
        if row.split is not None or self._split_names:
            self._append_split(row.split)
        if row.mask is not None and self._masks is None:
            self._masks = PackedTexts()
            for _ in self._lines[1:]:
                self._masks.append("")
        if self._masks is not None:
            self._masks.append(row.mask or "")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return LabelRow(
            self._images[place], self.labels(place), self._lines[place], self.split(place), self.mask(place)
        )

    @property
    def has_splits(self) -> bool:
        """Whether any row says a split."""
        return bool(self._split_names)

    def image(self, place: int) -> str:
        """`image` of the row at a place."""
        return self._images[place]

    def line(self, place: int) -> int:
        """`line` of the row at a place."""
        return self._lines[place]

    def labels(self, place: int) -> tuple[int, ...] | None:
        """`labels` of the row at a place."""
        found = self._labels[place]
        return None if found == _UNLABELLED else tuple(found)

    def split(self, place: int) -> str | None:
        """`split` of the row at a place."""
        number = self._splits[place] if self._splits else 0
        return self._split_names[number - 1] if number else None

    def mask(self, place: int) -> str | None:
        """`mask` of the row at a place."""
        return (self._masks[place] or None) if self._masks is not None else None

    def masks(self) -> Iterator[tuple[str, int]]:
        """All that there are, with the places of their rows."""
        return ((mask, place) for place, mask in enumerate(self._masks or ()) if mask)

    def _append_split(self, split: str | None) -> None:
        while len(self._splits) < len(self._lines) - 1:
            self._splits.append(0)
        if split is not None and split not in self._split_numbers:
            self._split_names.append(split)
            self._split_numbers[split] = len(self._split_names)
        self._splits.append(0 if split is None else self._split_numbers[split])
