"""Many short values in one piece of memory, where a Python object each would take ten times as much."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any


class Packed(Sequence[bytes]):
    """Byte strings that are only ever added: four bytes each beside their own, eight past four gigabytes."""

    _TYPECODE = "I"

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array(self._TYPECODE)

    def append(self, value: bytes) -> None:
        """Add one."""
        self._bytes += value
        try:
            self._ends.append(len(self._bytes))
        except OverflowError:
            self._ends = array("Q", self._ends)
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return bytes(self.piece(place))

    def piece(self, place: int) -> bytearray:
        """That at a place, as a copy of its own."""
        place = place + len(self._ends) if place < 0 else place
        return self._bytes[self._ends[place - 1] if place else 0 : self._ends[place]]


class PackedTexts(Sequence[str]):
    """Texts, also names of files that are no UTF-8, packed.

    Args:
        texts: to begin with.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._packed = Packed()
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add one."""
        self._packed.append(text.encode("utf-8", "surrogatepass"))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return str(self._packed.piece(place), "utf-8", "surrogatepass")
