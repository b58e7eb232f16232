"""Numbers by the hash of a name, compared with a dict of lists."""

from __future__ import annotations

import random
import tracemalloc
from collections import defaultdict

import pytest

from cpn_fast.files import hash_index
from cpn_fast.files.hash_index import HashIndex


def test_every_name_finds_its_numbers_in_their_order() -> None:
    draw = random.Random(0)
    items = [(f"ü{draw.randrange(700)}", number) for number in draw.sample(range(2**40), 1000)]
    expected = defaultdict(list)
    for name, number in items:
        expected[name].append(number)
    index = HashIndex(items)
    assert {name: list(index.find(name)) for name in expected} == expected
    assert list(index.find("none")) == [] and index.numbers().tolist() == sorted(number for _, number in items)
    several = sorted(sorted(numbers) for numbers in expected.values() if len(numbers) > 1)
    assert sorted(sorted(numbers) for numbers in index.shared()) == several


def test_names_of_one_hash_are_given_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_index, "_hash", lambda name: len(name) << 60)
    index = HashIndex([("a", 3), ("bb", 1), ("c", 0), ("dd", 9)], "I")
    assert list(index.find("x")) == [3, 0] and list(index.find("yy")) == [1, 9] and list(index.find("zzz")) == []
    assert sorted(map(list, index.shared())) == [[1, 9], [3, 0]]


def test_nothing() -> None:
    index = HashIndex()
    assert list(index.find("a")) == [] and list(index.shared()) == [] and index.numbers().tolist() == []


def test_a_name_takes_little_more_than_its_hash_and_number() -> None:
    count = 200_000
    tracemalloc.start()
    try:
        index = HashIndex((f"images/{number:08d}", number) for number in range(count))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(index.find("images/00000007")) == [7]
    assert held < 17.5 * count and peak < 20 * count  # 8 of the hash, 8 of the number, a part's copy while it is sorted
