"""What `cpn check-data` prints: one table a subject, whose rows the HTML page shows, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cpn_fast.data.check.estimates import Rates, estimate

if TYPE_CHECKING:
    from cpn_fast.data.check.report import CheckReport

_UNITS = ("B", "kB", "MB", "GB")


@dataclass(frozen=True)
class Rows:
    """A table.

    Attributes:
        title: what it shows.
        columns: their names.
        texts: how many of the first columns are texts; the others are figures.
        rows: cells.
        caption: what else must be known.
    """

    title: str
    columns: tuple[str, ...]
    texts: int
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def all_tables(report: CheckReport) -> list[Rows]:
    """The tables that have a row."""
    made = [preview_rows(report), split_rows(report), class_rows(report), pair_rows(report)]
    if report.rates:
        made.append(cost_rows(report, report.rates))
    return [table for table in made if table.rows]


def print_report(report: CheckReport, console: Console) -> None:
    """Print what the source is, tables, then warnings, notes and every problem, one a line."""
    what = f"{report.spec}: {report.description}" if report.description else report.spec
    console.print(what, markup=False, highlight=False, soft_wrap=True)
    for rows in all_tables(report):
        console.print(_printed(rows))
    notes = [*(f"warning: {line}" for line in report.warnings), *report.notes]
    for title, lines in (("Notes", notes), ("Problems", report.problems)):
        if lines:
            console.print(f"{title} ({len(lines)}):")
            for line in lines:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if not report.problems:
        console.print("No problems found.")


def _printed(rows: Rows) -> Table:
    table = Table(title=escape(rows.title), caption=escape(rows.caption) or None)
    for number, name in enumerate(rows.columns):
        table.add_column(escape(name), justify="left" if number < rows.texts else "right")
    for row in rows.rows:
        table.add_row(*map(escape, row))
    return table


def preview_rows(report: CheckReport) -> Rows:
    """The first three entries as they were understood."""
    columns = ("from", "image", "labels", "split", "mask")
    return Rows("the first rows, as understood", columns, len(columns), report.preview)


def split_rows(report: CheckReport) -> Rows:
    """Images and sizes of every split."""
    rows = []
    for name, counts in report.splits.items():
        by_area = sorted(counts.sizes, key=lambda size: size[0] * size[1])
        picked = (by_area[0], by_area[len(by_area) // 2], by_area[-1]) if by_area else ()
        sizes = [f"{width} x {height}" for width, height in picked] or ["-"] * 3
        rows.append((name, str(counts.images), str(counts.labelled), str(counts.with_mask), *sizes))
    columns = ("split", "images", "with labels", "with mask", "smallest", "median", "largest")
    return Rows("splits", columns, 1, tuple(rows))


def class_rows(report: CheckReport) -> Rows:
    """Images of every class and split."""
    rows = [
        (str(number + 1), label, *(str(split.per_class[number]) for split in report.splits.values()))
        for number, label in enumerate(report.classes)
    ]
    return Rows("images per class", ("mask value", "class", *report.splits), 2, tuple(rows))


def pair_rows(report: CheckReport) -> Rows:
    """Classes that come together."""
    rows = [(first, second, str(count), f"{100 * share:.0f} %") for first, second, count, share in report.pairs]
    columns = ("class", "class with it", "images", "of the rarer one's")
    return Rows("classes in one image, the most frequent pairs", columns, 2, tuple(rows))


def cost_rows(report: CheckReport, rates: Rates) -> Rows:
    """Time and disk that each split will cost."""
    rows = []
    for name, counts in report.splits.items():
        cost = estimate(counts.sizes, rates)
        cache = "not measured"
        if cost.superpixel_seconds is not None and cost.superpixel_bytes is not None:
            cache = f"{_bytes(cost.superpixel_bytes)}, {_duration(cost.superpixel_seconds)}"
        times = [_duration(seconds) for seconds in cost.label_seconds.values()]
        rows.append((name, cache, _bytes(cost.label_bytes), *times))
    columns = ("split", "superpixel cache", "masks", *(f"labelling, {name}" for name in rates.forward_seconds))
    caption = "labelling: scales 0.5 1 1.5 2 with flips, backbone alone"
    return Rows(f"rough cost on this machine ({rates.device})", columns, 1, tuple(rows), caption)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    power = min(3, max(1, (len(str(round(count))) - 1) // 3))
    value = count / 1000**power
    return f"{value:.0f} {_UNITS[power]}" if value >= 10 else f"{value:.1f} {_UNITS[power]}"
