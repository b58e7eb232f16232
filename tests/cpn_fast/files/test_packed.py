"""Packed values, choices by place and orders, compared with plain lists."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from cpn_fast.files import chosen
from cpn_fast.files.chosen import Chosen, choose, in_order
from cpn_fast.files.packed import Packed, PackedTexts


class Narrow(Packed):
    """Past 255 bytes the ends need more than a byte each, as past four gigabytes more than four."""

    _TYPECODE = "B"


def test_byte_strings_are_what_was_added_also_past_what_the_narrow_ends_hold() -> None:
    values = [bytes(range(length)) for length in (0, 3, 200, 0, 90, 255, 1)]
    packed = Narrow()
    for value in values:
        packed.append(value)
    assert list(packed) == values and packed[-1] == values[-1] and packed[-7] == b"" and packed[1:5:2] == values[1:5:2]
    with pytest.raises(IndexError):
        packed[7]


def test_texts_are_what_was_added_also_names_that_are_no_utf8() -> None:
    values = ["", "a/ü.png", b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "\U0001f600"]
    packed = PackedTexts()
    for value in values:
        packed.append(value)
    assert list(packed) == values and packed[-1] == values[-1] and packed[1:3] == values[1:3]


def test_what_is_chosen_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []

    class Squares(Sequence[int]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, place: Any) -> Any:
            made.append(place)
            return range(8)[place] ** 2

    some = choose(Squares(), lambda square: square % 2 == 0)
    made.clear()
    assert isinstance(some, Chosen) and len(some) == 4 and made == []
    assert list(some) == [0, 4, 16, 36] and list(some[1:]) == [4, 16, 36] and some[-1] == 36
    every = list("abc")
    assert choose(every, lambda _: True) is every and list(choose(every, lambda _: False)) == []


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_order_over_several_runs_is_that_of_sorted(monkeypatch: pytest.MonkeyPatch, shuffled: bool) -> None:
    monkeypatch.setattr(chosen, "_TOGETHER", 7)
    keys = [f"{number:03d}" for number in range(40)]
    if shuffled:
        random.Random(0).shuffle(keys)
    assert list(in_order(len(keys), keys.__getitem__)) == sorted(range(len(keys)), key=keys.__getitem__)
    assert list(in_order(0, keys.__getitem__)) == []
