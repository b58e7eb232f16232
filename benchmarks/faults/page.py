"""The record of the faults as tables: `python -m benchmarks.faults.page [--page docs/develop/faults.md]`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, line, show

RECORD = RESULTS / "faults.json"


def kills(record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each command that was killed, and one for all."""
    columns = ("tried", "killed", "lost", "different", "doubled", "left")
    rows = [line("command", *columns), line(*["---"] * (len(columns) + 1))]
    rows += [line(f"`{name}`", *(row[column] for column in columns)) for name, row in record.items()]
    return [*rows, line("all", *(sum(row[column] for row in record.values()) for column in columns))]


def shortages(record: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A row for each command, a column for each shortage."""
    kinds = list(dict.fromkeys(kind for row in record.values() for kind in row))

    def cell(row: Mapping[str, Mapping[str, Any]], kind: str) -> str:
        return "" if kind not in row else "whole" if row[kind]["ok"] else "**fault**"

    rows = [line("command", *kinds), line(*["---"] * (len(kinds) + 1))]
    return rows + [line(f"`{name}`", *(cell(row, kind) for kind in kinds)) for name, row in record.items()]


def damaged(record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each kind of file, and one for all."""
    rows = [line("file", "tried", "read", "refused in a line", "faults"), line(*["---"] * 5)]
    for name, row in record.items():
        rows.append(line(name, row["tried"], row["read"], row["refused"], len(row["faults"])))
    sums = (sum(row[column] for row in record.values()) for column in ("tried", "read", "refused"))
    return [*rows, line("all", *sums, sum(len(row["faults"]) for row in record.values()))]


def table(path: Path = RECORD) -> list[str]:
    """All three, with a heading each."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return [
        "## Killed", "", *kills(record["kills"]), "",
        "## Starved", "", *shortages(record["shortages"]), "",
        "## Given damaged files", "", *damaged(record["damaged"]),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into a page."""
    show(__doc__.partition(":")[0], "faults", table(), arguments)


if __name__ == "__main__":
    main()
