"""The tables of the faults: their sums by hand, and the page that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.faults.page import damaged, kills, shortages, table
from benchmarks.tables import with_table


def test_rows_and_sums_by_hand() -> None:
    row = {"tried": 3, "killed": 2, "lost": 0, "different": 1, "doubled": 0, "left": 4, "seconds": 1.0, "unclear": []}
    assert kills({"train": row, "label": {**row, "lost": 5}})[2:] == [
        "| `train` | 3 | 2 | 0 | 1 | 0 | 4 |",
        "| `label` | 3 | 2 | 5 | 1 | 0 | 4 |",
        "| all | 6 | 4 | 5 | 2 | 0 | 8 |",
    ]
    starved = {"train": {"full disk": {"ok": True}}, "label": {"full disk": {"ok": False}, "half a line": {"ok": True}}}
    assert shortages(starved) == [
        "| command | full disk | half a line |",
        "| --- | --- | --- |",
        "| `train` | whole |  |",
        "| `label` | **fault** | whole |",
    ]
    files = {"tried": 4, "read": 1, "refused": 2, "faults": ["traceback"]}
    assert damaged({"CSV": files})[2:] == ["| CSV | 4 | 1 | 2 | 1 |", "| all | 4 | 1 | 2 | 1 |"]


def test_the_page_holds_the_record(repository: Path) -> None:
    page = (repository / "docs" / "develop" / "faults.md").read_text(encoding="utf-8")
    assert with_table(page, table(), "faults") == page, "python -m benchmarks.faults.page --page docs/develop/faults.md"


def test_the_record_holds_no_fault(repository: Path) -> None:
    record = json.loads((repository / "benchmarks" / "results" / "faults.json").read_text(encoding="utf-8"))
    assert record["faults"] == 0
    for row in record["kills"].values():
        assert row["lost"] == row["different"] == row["doubled"] == row["left"] == 0 and row["unclear"] == []
