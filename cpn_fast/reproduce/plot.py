"""A table as a picture: bars, or the lines of a figure, ours beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from cpn_fast.files.atomic import atomic_path
from cpn_fast.reproduce.summary import Cells
from cpn_fast.reproduce.tables import Row, Table

OURS, PAPER = "tab:blue", "tab:gray"
DOTS = 120


def draw(path: Path, table: Table, rows: Sequence[Row], cells: Cells, columns: Sequence[str], heading: str) -> None:
    """Draw a table to a PNG: one panel a column, two lines for a figure.

    Args:
        path: the PNG, written in one step.
        table: says whether lines or bars are drawn.
        rows: its rows, from top to bottom or left to right.
        cells: mean and spread of each row in each column.
        columns: its columns.
        heading: the title, wrapped to the picture's width.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = bool(table.axis)
    panels = 2 if lines else len(columns)
    size = (11.0, 4.5) if lines else (max(7.0, 2.0 + 3.0 * panels), 1.8 + 0.5 * len(rows))
    figure = Figure(figsize=size, dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fill(heading, int(size[0] * 12)), fontsize=10)
    axes = figure.subplots(1, panels, sharey=not lines, squeeze=False)[0]
    if lines:
        _curves(axes, table, rows, cells, columns[0])
    else:
        for panel, column in zip(axes, columns, strict=True):
            _bars(panel, rows, cells, column, table.unit)
        axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        axes[0].legend(*_legend(rows, columns), fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _bars(panel: Any, rows: Sequence[Row], cells: Cells, column: str, unit: str) -> None:
    """Two horizontal bars a row: ours with its spread, and the paper's."""
    time = unit.startswith("seconds")
    for place, row in enumerate(rows):
        cell, paper = cells[row.name][column], row.paper.get(column)
        for value, spread, offset, colour in (
            (cell.mean, cell.spread, 0.0 if paper is None else -0.2, OURS),
            (math.nan if paper is None else paper, math.nan, 0.2, PAPER),
        ):
            if math.isnan(value):
                continue
            error = None if math.isnan(spread) else spread
            panel.barh(place + offset, value, 0.38, color=colour, xerr=error, error_kw={"linewidth": 1, "capsize": 2})
            text = f" {value:.3g}" if time else f" {value:.1f}"
            panel.text(value + (error or 0), place + offset, text, va="center", fontsize=7)
    panel.set_xlabel(f"{column}: {unit}" if not time else unit, fontsize=8)
    if time:
        panel.set_xscale("log")
    panel.margins(x=0.18)
    panel.grid(axis="x", alpha=0.3)
    panel.tick_params(labelsize=8)


def _legend(rows: Sequence[Row], columns: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    handles, names = [Patch(color=OURS)], ["ours"]
    if any(column in row.paper for row in rows for column in columns):
        handles, names = [*handles, Patch(color=PAPER)], [*names, "the paper"]
    return handles, names


def _curves(axes: Sequence[Any], table: Table, rows: Sequence[Row], cells: Cells, column: str) -> None:
    """Ours in the left panel, the paper's points in the right one: other data, so each has its own y axis."""
    positions = [math.nan if row.position is None else row.position for row in rows]
    means = [cells[row.name][column].mean for row in rows]
    spreads = [0.0 if math.isnan(s) else s for s in (cells[row.name][column].spread for row in rows)]
    paper = [row.paper.get(column, math.nan) for row in rows]
    known = [(x, y) for x, y in zip(positions, paper, strict=True) if not math.isnan(y)]
    axes[0].errorbar(positions, means, yerr=spreads, marker="o", color=OURS, capsize=3)
    axes[0].set_title("ours", fontsize=9)
    joined = "-" if len(known) == len(rows) else "none"  # a line between a few points would be a curve of our own
    axes[1].plot([x for x, _ in known], [y for _, y in known], marker="o", linestyle=joined, color=PAPER)
    axes[1].set_title("the paper, VOC 2012", fontsize=9)
    names = [row.name.partition("= ")[2] for row in rows]
    for panel in axes:
        if table.log_axis:
            panel.set_xscale("log")
        panel.set_xticks(positions, names, fontsize=7, rotation=30 if max(map(len, names)) > 5 else 0)
        panel.minorticks_off()
        panel.set_xlabel(table.axis, fontsize=8)
        panel.set_ylabel(table.unit, fontsize=8)
        panel.grid(alpha=0.3)
        panel.tick_params(axis="y", labelsize=8)
    axes[1].set_xlim(axes[0].get_xlim())
