"""The packed table of the cached maps gives back what was kept."""

from __future__ import annotations

import random
import sys
import tracemalloc
from pathlib import Path

from cpn_fast.data.superpixels.entries import Entries, maps_path
from cpn_fast.data.superpixels.maps import Entry
from cpn_fast.data.types import Record


def drawn(draw: random.Random, folder: Path) -> Entry:
    key = f"{draw.getrandbits(128):032x}"
    shares = tuple(draw.random() for _ in range(3))
    asked, actual = (tuple(draw.randrange(1, 70_000) for _ in range(3)) for _ in range(2))
    return Entry(maps_path(folder, key), shares, asked, actual, draw.random() < 0.5)


def test_every_entry_is_as_it_was_kept() -> None:
    draw, folder = random.Random(0), Path("cache")
    records = [Record(f"ü{number}", Path("x.png"), None) for number in range(50)]
    entries, expected = Entries(records, folder), {}
    for record in draw.sample(records, 40):
        expected[record.id] = drawn(draw, folder)
        entries.put(record.id, expected[record.id])
    assert {record.id: entries.find(record.id) for record in records} == {
        record.id: expected.get(record.id) for record in records
    }
    assert entries.find("another") is None
    in_order = [expected[record.id] for record in records if record.id in expected]
    asked, actual = entries.segments()
    assert asked.tolist() == [list(entry.asked) for entry in in_order]
    assert actual.tolist() == [list(entry.actual) for entry in in_order]
    assert entries.computed == sum(entry.computed for entry in in_order)


def test_an_image_takes_less_than_its_path_alone() -> None:
    count, folder = 20_000, Path("/somewhere/cache/superpixels")
    records = [Record(f"images/{number:08d}", Path("x.png"), None) for number in range(count)]
    entry = Entry(maps_path(folder, "0" * 32), (0.1,) * 3, (9,) * 3, (8,) * 3, False)  # every Path interns its parts
    tracemalloc.start()
    try:
        entries = Entries(records, folder)
        for record in records:
            entries.put(record.id, entry)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held / count < 100 < sys.getsizeof(maps_path(folder, "0" * 32)) + sys.getsizeof("0" * 70)
