"""`--shard i/n`."""

from __future__ import annotations

import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.shard import parse_shard, take_shard


def test_hand_case() -> None:
    assert take_shard(list("abcdefg"), "1/3") == ["a", "d", "g"]
    assert take_shard(list("abcdefg"), "3/3") == ["c", "f"]
    assert take_shard(list("abc"), None) == ["a", "b", "c"]


def test_more_shards_than_items() -> None:
    assert [take_shard([10, 20], f"{i}/4") for i in (1, 2, 3, 4)] == [[10], [20], [], []]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", ""])
def test_malformed(text: str) -> None:
    with pytest.raises(DataError, match="--shard"):
        parse_shard(text)
