"""A few out of many, at even distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from cpn_fast.data.sources.base import LazyRecords
from cpn_fast.data.types import Record, Source
from cpn_fast.files.chosen import choose
from cpn_fast.files.errors import DataError

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items at even distances, the first and the last among them; in their order."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in np.unique(places)]


def records_of(source: Source, split: str | None) -> tuple[str, Sequence[Record]]:
    """A split and its records; None = `default_split`.

    Raises:
        DataError: for an unknown split, or where None leaves it open.
    """
    split = default_split(source) if split is None else split
    return split, source.records(split)


def default_split(source: Source) -> str:
    """The split to work on when nobody names one: `train`, else `all`, else the only one.

    Where no image has a mask there is nothing to score on, so nothing is held back: `all`, where the source has it.

    Raises:
        DataError: where that leaves it open.
    """
    splits = source.splits()
    if "all" in splits and not _any_mask(source.records("all")):
        return "all"
    split = next((name for name in ("train", "all") if name in splits), splits[0] if len(splits) == 1 else None)
    if split is None:
        raise DataError(f"{source.spec}: has no split train or all; name one of {', '.join(splits)} by --split")
    return split


def _any_mask(records: Sequence[Record]) -> bool:
    return records.any_mask() if isinstance(records, LazyRecords) else any(record.mask_path for record in records)


def spread_evenly(records: Sequence[Record], count: int | None) -> Sequence[Record]:
    """At most `count` records at even distances, of those with masks if any; None = all records."""
    if count is None:
        return records
    records = choose(records, lambda record: record.mask_path is not None) or records
    return spread(records, count)
