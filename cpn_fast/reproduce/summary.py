"""What the measurements of a table say: mean and spread over seeds, and whether the rows stand in the paper's order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from cpn_fast.reproduce.tables import Row


@dataclass(frozen=True)
class Measurement:
    """One row for one seed.

    Attributes:
        row: its name.
        seed: of the training, or of the crops that are timed.
        figures: map ("cam", "rcam"; "" where there is none) -> column -> figure in the table's unit; None where it is
            not defined.
        default_map: the map that stands for the row: RCAM where the network refines, else CAM.
        about: JSON-able values beside the figures: `run`, `options`, costs, `failure` where there are no figures.
    """

    row: str
    seed: int
    figures: Mapping[str, Mapping[str, float | None]]
    default_map: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def value(self, column: str) -> float | None:
        """The default map's figure in a column; None where there is none."""
        return self.figures.get(self.default_map, {}).get(column)


@dataclass(frozen=True)
class Cell:
    """A row's figure over the seeds.

    Attributes:
        mean: NaN where no seed has a figure.
        spread: sample standard deviation; NaN for fewer than two seeds.
        count: seeds that have a figure.
    """

    mean: float
    spread: float
    count: int


def cell_of(values: Sequence[float | None]) -> Cell:
    """Mean and sample standard deviation (n - 1) of the values that are there."""
    there = [value for value in values if value is not None]
    mean = float(np.mean(there)) if there else math.nan
    spread = float(np.std(there, ddof=1)) if len(there) > 1 else math.nan
    return Cell(mean, spread, len(there))


Cells = Mapping[str, Mapping[str, Cell]]


def cells_of(rows: Sequence[Row], measurements: Sequence[Measurement], columns: Sequence[str]) -> Cells:
    """Row name -> column -> the default map's cell."""
    return {
        row.name: {
            column: cell_of([found.value(column) for found in measurements if found.row == row.name])
            for column in columns
        }
        for row in rows
    }


@dataclass(frozen=True)
class Order:
    """How far rows stand in the paper's order, by pairs of rows to which the paper gives different figures.

    Attributes:
        pairs: how many there are.
        agreeing: how many stand as in the paper.
        swapped: (the paper's higher row, its lower row, how much higher the latter is with us) of the others.
    """

    pairs: int
    agreeing: int
    swapped: tuple[tuple[str, str, float], ...]

    @property
    def same(self) -> bool:
        """Whether every pair agrees."""
        return self.agreeing == self.pairs


def order_of(ours: Mapping[str, float], paper: Mapping[str, float]) -> Order:
    """Compare the order of two sets of figures; rows without a figure in either (NaN) are left out.

    Args:
        ours: row name -> figure.
        paper: the same, any scale.
    """
    names = [name for name in paper if name in ours and not math.isnan(ours[name])]
    pairs, swapped = 0, []
    for first, second in combinations(names, 2):
        if paper[first] == paper[second]:
            continue
        pairs += 1
        high, low = (first, second) if paper[first] > paper[second] else (second, first)
        if ours[high] <= ours[low]:
            swapped.append((high, low, ours[low] - ours[high]))
    return Order(pairs, pairs - len(swapped), tuple(swapped))


def orders_of(rows: Sequence[Row], cells: Cells, columns: Sequence[str]) -> dict[str, Order]:
    """Column -> how far its rows stand in the paper's order, for columns in which that can be said."""
    orders = {
        column: order_of(
            {row.name: cells[row.name][column].mean for row in rows},
            {row.name: row.paper[column] for row in rows if column in row.paper},
        )
        for column in columns
    }
    return {column: order for column, order in orders.items() if order.pairs}
