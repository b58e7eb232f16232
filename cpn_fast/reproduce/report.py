"""A table as a person and a program want it: on the terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.output_folder import raise_io_errors_as, settings_that_differ
from cpn_fast.reproduce.differences import Difference
from cpn_fast.reproduce.machine import machine
from cpn_fast.reproduce.plot import draw
from cpn_fast.reproduce.summary import Cells, Measurement, Order, cells_of, orders_of
from cpn_fast.reproduce.tables import Row, Table, TableName
from cpn_fast.runs.folder import versions

FORMAT = 1
HEADER = ("table", "row", "seed", "map", "default_map", "column", "value", "spread", "paper", "unit", "shortened",
          "options", "run", "note")  # fmt: skip


@dataclass(frozen=True)
class Report:
    """One table with what was measured for it so far.

    Attributes:
        name: as on the command line.
        table: which.
        rows: its rows.
        columns: its columns.
        seeds: asked for.
        measurements: so far.
        settings: JSON-able: what every figure depends on.
        shortened: what was cut off the paper's recipe, "" where nothing was.
        where: source and split in words.
        differences: of the rows to the first one, once all are measured.
    """

    name: TableName
    table: Table
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    seeds: tuple[int, ...]
    measurements: tuple[Measurement, ...]
    settings: Mapping[str, Any]
    shortened: str
    where: str
    differences: tuple[Difference, ...] = ()

    @property
    def missing(self) -> int:
        """Measurements that are still to be made."""
        return len(self.rows) * len(self.seeds) - len(self.measurements)

    @property
    def cells(self) -> Cells:
        """Mean and spread of each row in each column."""
        return cells_of(self.rows, self.measurements, self.columns)

    @property
    def orders(self) -> dict[str, Order]:
        """Per column how far the rows stand in the paper's order."""
        return orders_of(self.rows, self.cells, self.columns)

    def heading(self) -> str:
        """Title, source, seeds, what was shortened, and whether it is whole."""
        parts = [f"{self.table.title}, {self.where}", self.table.unit, seeds_in_words(self.seeds)]
        parts += [self.shortened] if self.shortened else []
        parts += [f"incomplete: {self.missing} measurements to come"] if self.missing else []
        return "; ".join(parts)


def seeds_in_words(seeds: Sequence[int]) -> str:
    """What the figures are over."""
    if len(seeds) == 1:
        return f"one seed ({seeds[0]})"
    return f"mean ± sample standard deviation over seeds {' '.join(map(str, seeds))}"


def number(value: float, unit: str) -> str:
    """A figure as printed: two decimals of a percentage, three digits of a time."""
    return f"{value:.3g}" if unit.startswith("seconds") else f"{value:.2f}"


def print_report(console: Console, report: Report) -> None:
    """The table with the paper's figures in brackets, its notes, and how its order compares with the paper's."""
    unit, cells = report.table.unit, report.cells
    console.print(report.heading(), style="bold", highlight=False, soft_wrap=True)
    shown = RichTable()
    shown.add_column("row")
    for column in report.columns:
        shown.add_column(f"{column} (paper)", justify="right")
    for row in report.rows:
        texts = []
        for column in report.columns:
            cell, paper = cells[row.name][column], row.paper.get(column)
            text = "-" if math.isnan(cell.mean) else number(cell.mean, unit)
            text += "" if math.isnan(cell.spread) else f" ± {number(cell.spread, unit)}"
            texts.append(text + (f" ({number(paper, unit)})" if paper is not None else ""))
        shown.add_row(row.name, *texts)
    console.print(shown)
    notes = (*report.table.notes, *failures(report), *orders_in_words(report), *differences_in_words(report))
    for line in notes:
        console.print(line, highlight=False, soft_wrap=True)


def failures(report: Report) -> Iterator[str]:
    """A line for every measurement that gave no figure."""
    for found in report.measurements:
        if "failure" in found.about:
            yield f"{found.row}, seed {found.seed}: {found.about['failure']}"


def differences_in_words(report: Report) -> Iterator[str]:
    """A line that says what the differences are, and one for every row but the first."""
    if report.differences:
        yield (
            "differences of mIoU at the best background score of the even positions, on the odd ones, with the 95% "
            "interval of a paired bootstrap over images:"
        )
    yield from map(str, report.differences)


def orders_in_words(report: Report) -> Iterator[str]:
    """A line for every column in which the rows can be compared with the paper's order."""
    for column, order in report.orders.items():
        text = f"order of the rows ({column}): "
        if order.same:
            yield f"{text}as in the paper ({order.pairs} of {order.pairs} pairs)"
        else:
            swapped = ", ".join(
                f"{low} above {high} by {number(gap, report.table.unit)}" for high, low, gap in order.swapped
            )
            yield f"{text}not the paper's ({order.agreeing} of {order.pairs} pairs agree): {swapped}"


def write_report(folder: Path, report: Report) -> None:
    """Write NAME.csv, NAME.json and NAME.png, each in one step. Raises DataError where they cannot be written."""
    with raise_io_errors_as(folder, "the table"):
        atomic_write_text(folder / f"{report.name}.csv", csv_text(report))
        content = json.dumps(json_content(report), indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write_text(folder / f"{report.name}.json", content + "\n")
        draw(folder / f"{report.name}.png", report.table, report.rows, report.cells, report.columns, report.heading())


def csv_text(report: Report) -> str:
    """The CSV: a line per row, seed, map and column, and behind them (`seed` = mean) the means with their spread."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, HEADER, lineterminator="\n")
    writer.writeheader()
    common = {"table": report.name, "unit": report.table.unit, "shortened": report.shortened}
    paper = {row.name: row.paper for row in report.rows}
    for found in report.measurements:
        options = "; ".join(f"{name}={value}" for name, value in found.about.get("options", {}).items())
        line = common | {"row": found.row, "seed": found.seed, "options": options, "run": found.about.get("run", "")}
        for name, figures in (found.figures or {"": dict.fromkeys(report.columns)}).items():
            for column, value in figures.items():
                writer.writerow(
                    line | {
                        "map": name,
                        "default_map": "yes" if name == found.default_map else "no",
                        "column": column,
                        "value": "" if value is None else f"{value:.6g}",
                        "paper": paper[found.row].get(column, "") if name == found.default_map else "",
                        "note": found.about.get("failure", ""),
                    }
                )  # fmt: skip
    for row, columns in report.cells.items():
        for column, cell in columns.items():
            values = {"value": cell.mean, "spread": cell.spread}
            texts = {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in values.items()}
            about = {"row": row, "seed": "mean", "default_map": "yes", "column": column, "note": f"{cell.count} seeds"}
            writer.writerow(common | about | texts | {"paper": paper[row].get(column, "")})
    return buffer.getvalue()


def json_content(report: Report) -> dict[str, Any]:
    """The JSON: settings, machine, versions, and per row its figures, cost and options."""

    def finite(value: float) -> float | None:
        return None if math.isnan(value) else value

    cells = report.cells
    return {
        "format": FORMAT,
        "table": report.name,
        "title": report.table.title,
        "unit": report.table.unit,
        "complete": report.missing == 0,
        "shortened": report.shortened or None,
        "seeds": list(report.seeds),
        "settings": dict(report.settings),
        "notes": list(report.table.notes),
        "machine": {
            "name": machine("cpu"),
            "gpu": machine("cuda") if torch.cuda.is_available() else None,
            "torch_threads": torch.get_num_threads(),
        },
        "versions": versions(),
        "rows": [
            {
                "name": row.name,
                "paper": dict(row.paper),
                "mean": {column: finite(cell.mean) for column, cell in cells[row.name].items()},
                "spread": {column: finite(cell.spread) for column, cell in cells[row.name].items()},
                "seeds": [
                    {"seed": found.seed, "default_map": found.default_map, "figures": found.figures, **found.about}
                    for found in report.measurements
                    if found.row == row.name
                ],
            }
            for row in report.rows
        ],
        "differences": [difference.values() for difference in report.differences],
        "order": {
            column: {
                "same_as_paper": order.same,
                "pairs": order.pairs,
                "agreeing": order.agreeing,
                "swapped": [{"paper_higher": h, "paper_lower": low, "by": gap} for h, low, gap in order.swapped],
            }
            for column, order in report.orders.items()
        },
    }


def check_settings(folder: Path, name: TableName, settings: Mapping[str, Any]) -> None:
    """Refuse to replace a table that was made with other settings.

    Raises:
        DataError: naming every setting that differs, or where the table's JSON cannot be read.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return
    try:
        stored = dict(read_json(path, "what `cpn reproduce` wrote")["settings"])
    except (DataError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: {error!r}; expected what `cpn reproduce` wrote: delete it, it is made again"
        ) from error
    if different := settings_that_differ(stored, json.loads(json.dumps(settings))):
        raise DataError(
            f"{path}: was made with other settings: {different}; give the same ones or another --output, or "
            "delete the file (trained runs stay)"
        )
