"""Split a list of images over several machines: `--shard i/n`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cpn_fast.files.errors import DataError

Item = TypeVar("Item")


def parse_shard(text: str) -> tuple[int, int]:
    """Read `i/n`, the i-th of n parts, i counted from 1.

    Raises:
        DataError: if the text is not of that form or i is not in 1..n.
    """
    first, slash, second = text.partition("/")
    if not slash or not first.strip().isdecimal() or not second.strip().isdecimal():
        raise DataError(f"--shard {text!r}: expected i/n, such as 1/4 for the first of four parts")
    index, count = int(first), int(second)
    if not 1 <= index <= count:
        raise DataError(f"--shard {text!r}: the part must be between 1 and {count}; parts are counted from 1")
    return index, count


def take_shard(items: Sequence[Item], shard: str | None) -> Sequence[Item]:
    """The items of one shard: every n-th from the i-th; all of them where `shard` is None.

    The shards of a list are disjoint and together hold all of it.

    Raises:
        DataError: if `shard` is malformed.
    """
    if shard is None:
        return items
    index, count = parse_shard(shard)
    return items[index - 1 :: count]
