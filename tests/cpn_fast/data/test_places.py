"""Where images stand in their split, by their ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpn_fast.data.places import Places
from cpn_fast.data.types import Record
from cpn_fast.files import hash_index


@pytest.mark.parametrize("one_hash", [False, True])
def test_every_image_has_its_place_also_where_two_ids_have_one_hash(
    one_hash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if one_hash:
        monkeypatch.setattr(hash_index, "_hash", lambda name: len(name) << 60)
    names = ["b", "a", "ü", "aa", "images/0", "ab"]
    places = Places([Record(name, Path("x.png"), None) for name in names])
    assert [places.of(name) for name in names] == [0, 1, 2, 3, 4, 5]
    assert [places.find(name) for name in ("a", "c", "", "aaa")] == [1, None, None, None]
    with pytest.raises(KeyError, match="c"):
        places.of("c")
