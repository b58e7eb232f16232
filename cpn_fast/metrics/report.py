"""Scores as a person and a program want them: metrics.json, terminal tables, and the plot of mIoU over beta."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cpn_fast.files.atomic import atomic_path, atomic_write_text
from cpn_fast.metrics.beta_sweep import BetaSweep, ThresholdScores
from cpn_fast.metrics.maps import MULTI, MapName

Sweeps = Mapping[tuple[MapName, str], BetaSweep]


def finite(value: float) -> float | None:
    """NaN, which JSON lacks, as None."""
    return None if math.isnan(value) else value


def point_values(point: ThresholdScores, classes: Sequence[str]) -> dict[str, Any]:
    """`miou`, `beta`, `background`, `foreground` and `per_class` (by name, None where a class occurs nowhere), 0..1."""
    return {
        "miou": finite(point.miou),
        "beta": finite(point.beta),
        "background": finite(point.background),
        "foreground": finite(point.foreground),
        "per_class": dict(zip(("background", *classes), point.per_class, strict=True)),
    }


def sweep_values(sweep: BetaSweep, classes: Sequence[str]) -> dict[str, Any]:
    """The best point of a sweep, and under `sweep` the columns `beta`, `miou`, `background`, `foreground` of all."""
    table = sweep.table()
    columns = ("beta", "miou", "background", "foreground")
    return {
        **point_values(sweep.best(), classes),
        "sweep": {name: [finite(getattr(point, name)) for point in table] for name in columns},
    }


def run_metrics(sweeps: Sweeps, primary: MapName, classes: Sequence[str], about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a run's metrics.json.

    Args:
        sweeps: a sweep for each map at each scale and multi-scale.
        primary: the map whose multi-scale values stand at the top: the run's `miou` and `beta`.
        classes: the K foreground class names.
        about: how it was measured.

    Returns:
        the primary map's values, `map`, `about`'s, and under `results` those of every map and scale.
    """
    results: dict[str, dict[str, Any]] = {}
    for (name, scale), sweep in sweeps.items():
        results.setdefault(name, {})[scale] = sweep_values(sweep, classes)
    return {**results[primary][MULTI], "map": primary, **about, "results": results}


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json in one step."""
    atomic_write_text(path, json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def percent(value: float | None) -> str:
    """An IoU in 0..1 as percent with one decimal, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def decimals(value: float | None) -> str:
    """A background score with two decimals, a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def run_table(metrics: Mapping[str, Any]) -> Table:
    """Every map and scale at its own best beta, the primary map's row in bold."""
    table = Table(title="mIoU in % at the best beta", title_justify="left")
    table.add_column("map")
    table.add_column("scale")
    for column in ("mIoU", "beta", "background", "foreground"):
        table.add_column(column, justify="right")
    for name, scales in metrics["results"].items():
        for scale, values in scales.items():
            primary = name == metrics["map"] and scale == MULTI
            cells = [percent(values["miou"]), decimals(values["beta"])]
            cells += [percent(values["background"]), percent(values["foreground"])]
            table.add_row(name.upper(), scale, *cells, style="bold" if primary else None)
    return table


def comparison_table(scored: Sequence[Mapping[str, Any]]) -> Table:
    """One row per target from their metrics.json, with the change of mIoU in points from the first."""
    table = Table(title="IoU in %", title_justify="left")
    table.add_column("target", overflow="fold")
    for column in ("images", "mIoU", "change", "background", "foreground"):
        table.add_column(column, justify="right")
    for number, metrics in enumerate(scored):
        known = None not in (metrics["miou"], scored[0]["miou"])
        change = f"{100 * (metrics['miou'] - scored[0]['miou']):+.1f}" if number and known else ""
        cells = [percent(metrics["miou"]), change, percent(metrics["background"]), percent(metrics["foreground"])]
        table.add_row(metrics["target"], str(metrics["images"]), *cells)
    return table


def class_table(metrics: Mapping[str, Any], title: str) -> Table:
    """IoU per class, several to a line, best first; classes without one stand below."""
    found = [(name, value) for name, value in metrics["per_class"].items() if value is not None]
    found.sort(key=lambda item: -item[1])
    columns = 3
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(columns):
        table.add_column()
        table.add_column(justify="right")
    height = -(-len(found) // columns)
    for row in range(height):
        picked = found[row::height]
        cells = [text for name, value in picked for text in (name, percent(value))]
        table.add_row(*cells)
    missing = [name for name, value in metrics["per_class"].items() if value is None]
    if missing:
        table.caption = f"neither in masks nor predicted, so not counted: {', '.join(missing)}"
        table.caption_justify = "left"
    return table


def plot_sweeps(path: Path, metrics: Mapping[str, Any], title: str) -> None:
    """Draw mIoU over beta, a line for each map at each scale with its best point marked, to a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = {"cam": "tab:blue", "rcam": "tab:orange"}
    styles = ("--", "-.", ":", (0, (1, 3)), (0, (5, 5)))
    for name, scales in metrics["results"].items():
        for index, (scale, values) in enumerate(scales.items()):
            multi = scale == MULTI
            curve = values["sweep"]
            axes.plot(
                curve["beta"],
                [math.nan if value is None else 100 * value for value in curve["miou"]],
                color=colours[name],
                linestyle="-" if multi else styles[index % len(styles)],
                linewidth=2 if multi else 1,
                alpha=1 if multi else 0.6,
                label=f"{name.upper()} {scale}: {percent(values['miou'])} at {decimals(values['beta'])}",
            )
            if values["miou"] is not None:
                axes.plot(values["beta"], 100 * values["miou"], "o", color=colours[name], markersize=6 if multi else 3)
    axes.set(xlabel="beta (background score)", ylabel="mIoU in %", title=title, xlim=(0, 1), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


METRICS_NAME = "metrics.json"
