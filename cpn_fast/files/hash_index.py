"""Numbers by name, without the names: as many bytes as a hash and a number take."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_BITS = 4
"""Of a hash, that tell its part: names are sorted part by part, so that a sixteenth is all there is a second time."""


def _hash(name: str) -> int:
    """64 bits; others in another process."""
    return hash(name) & 0xFFFF_FFFF_FFFF_FFFF


class HashIndex:
    """Numbers by the hash of a name, of this process alone.

    Names of one hash are not told apart: who asks looks whether what a number stands for has the name.

    Args:
        items: (name, number), in any order.
        typecode: of the numbers, as of `array`: "I" below 2**32, else "Q".
    """

    def __init__(self, items: Iterable[tuple[str, int]] = (), typecode: str = "Q") -> None:
        parts = range(1 << _BITS)
        self._hashes, self._numbers = [array("Q") for _ in parts], [array(typecode) for _ in parts]
        hashes, numbers = self._hashes, self._numbers
        for name, number in items:
            code = _hash(name)
            part = code >> (64 - _BITS)
            hashes[part].append(code)
            numbers[part].append(number)
        for part in parts:
            self._sort(part)

    def find(self, name: str) -> Sequence[int]:
        """The numbers of all names with this one's hash, in their order."""
        code = _hash(name)
        part = code >> (64 - _BITS)
        hashes = self._hashes[part]
        begin = bisect_left(hashes, code)
        if begin == len(hashes) or hashes[begin] != code:
            return ()
        return self._numbers[part][begin : bisect_right(hashes, code, begin)]

    def shared(self) -> Iterator[Sequence[int]]:
        """The numbers of each hash that more than one has, each time in their order."""
        for hashes, numbers in zip(self._hashes, self._numbers, strict=True):
            codes = _values(hashes)
            ends = np.flatnonzero(np.diff(codes)) + 1
            begins = np.concatenate(([0], ends))
            ends = np.concatenate((ends, [len(codes)]))
            for place in np.flatnonzero(ends - begins > 1).tolist():
                yield numbers[begins[place] : ends[place]]

    def numbers(self) -> np.ndarray[Any, Any]:
        """All numbers, ascending, as an array of their type."""
        found = np.concatenate([_values(numbers) for numbers in self._numbers])
        found.sort()
        return found

    def _sort(self, part: int) -> None:
        hashes, numbers = _values(self._hashes[part]), _values(self._numbers[part])
        order = np.argsort(hashes, kind="stable")
        hashes[:], numbers[:] = hashes[order], numbers[order]


def _values(numbers: array[int]) -> np.ndarray[Any, Any]:
    """The same memory as an array of NumPy."""
    kind = np.dtype(numbers.typecode)
    return np.frombuffer(numbers, kind) if numbers else np.zeros(0, kind)
