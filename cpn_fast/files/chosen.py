"""Some of many items, by their places, so that items which are made as they are asked for are not all held."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, TypeVar

Item = TypeVar("Item")

_TOGETHER = 1 << 16
"""Keys that are held at a time."""


class Chosen(Sequence[Item]):
    """Some items of a sequence in four bytes each; a slice of it is one too.

    Args:
        items: all of them.
        places: of those that count, in the order in which they count.
    """

    def __init__(self, items: Sequence[Item], places: Iterable[int]) -> None:
        self._items, self._places = items, array("I", places)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Item]:
        return map(self._items.__getitem__, self._places)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Chosen(self._items, self._places[place])
        return self._items[self._places[place]]


def choose(items: Sequence[Item], keep: Callable[[Item], bool]) -> Sequence[Item]:
    """Those of the items that `keep` is true of, in their order; the sequence itself where that is all of them."""
    found = Chosen(items, (place for place, item in enumerate(items) if keep(item)))
    return items if len(found) == len(items) else found


def in_order(count: int, key: Callable[[int], str]) -> array[int]:
    """The numbers 0 to count - 1 sorted by a key that is made as it is needed, so that few of them are held at once."""
    runs = [
        array("I", sorted(range(begin, min(begin + _TOGETHER, count)), key=key)) for begin in range(0, count, _TOGETHER)
    ]
    if any(key(before[-1]) > key(after[0]) for before, after in pairwise(runs)):
        return array("I", heapq.merge(*runs, key=key))
    return array("I", chain(*runs))
