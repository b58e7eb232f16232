"""Line and bar charts for a page: matplotlib's SVG, with the page's CSS variables as colours and its font."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.6, 2.6
"""Inches; a page shows a chart at the width that it has."""
ROW = 0.16
MAX_POINTS = 300
MAX_DOTS = 40
"""Of a line with more points the single ones are not marked."""

COLOURS = ("#2563c9", "#d9730d", "#1f8a57", "#a23ab0", "#b3263a", "#6b7280")
INK, SOFT, GRID = "#16202c", "#5b6776", "#dfe4ea"
VARIABLES = {**{f"--c{i}": colour for i, colour in enumerate(COLOURS)}, "--ink": INK, "--soft": SOFT, "--line": GRID}
"""CSS variable of the page -> the colour that stands for it while a chart is drawn."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "cpn-fast",  # the same chart gives the same bytes
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout everywhere
    "font.size": 8,
    "text.color": SOFT,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": GRID,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: its legend.
        x: positions, ascending.
        y: values, as many; points that are not finite are left out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


def thinned(series: Series, limit: int = MAX_POINTS) -> Series:
    """The series with its non-finite points left out and, where it has more than `limit`, means of equal runs."""
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    run = max(1, math.ceil(len(points) / limit))
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    return Series(
        series.name, [sum(p[0] for p in g) / len(g) for g in groups], [sum(p[1] for p in g) / len(g) for g in groups]
    )


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_from: float | None = None,
    mark: tuple[float, str] | None = None,
) -> str:
    """Lines over a common x axis.

    Args:
        series: the lines; empty ones are left out.
        x_label: name of the x axis.
        y_label: name of the y axis.
        y_from: lower end of the y axis, or the smallest value where that is below; None = the smallest.
        mark: a vertical line at this x, and what to write on it; left out where it is outside of the lines.

    Returns:
        An `<svg>` element; an empty string where no series has a finite point.
    """
    lines = [line for line in map(thinned, series) if line.x]
    if not lines:
        return ""
    with _chart(WIDTH, HEIGHT) as (figure, axes):
        for line, colour in zip(lines, _colours(len(lines)), strict=True):
            marker = "o" if len(line.x) <= MAX_DOTS else ""
            axes.plot(line.x, line.y, color=colour, linewidth=1.5, marker=marker, markersize=3, clip_on=False)
        low, high = axes.dataLim.intervalx
        if mark is not None and low <= mark[0] <= high:
            right = mark[0] > low + 0.7 * (high - low)
            axes.axvline(mark[0], color=SOFT, linestyle=(0, (4, 4)), linewidth=0.8)
            axes.annotate(
                mark[1],
                (mark[0], 0),
                (-3 if right else 3, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if right else "left",
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.01)
        if y_from is not None:
            axes.set_ylim(bottom=min(y_from, axes.dataLim.ymin))
        axes.grid(axis="y")
        _legend(figure, [line.name for line in lines])
        return _with_tips(_svg(figure, f"{y_label} over {x_label}"), lines)


def bar_chart(names: Sequence[str], groups: Mapping[str, Sequence[float | None]], unit: str = "") -> str:
    """Horizontal bars from 0 to 100, one row of bars per name.

    Args:
        names: what each row is about.
        groups: legend -> one value per name, in [0, 100]; None or NaN draws no bar and writes "absent".
        unit: written behind each value.

    Returns:
        An `<svg>` element; an empty string without names.
    """
    if not names or not groups:
        return ""
    pitch = len(groups) + 0.5
    with _chart(WIDTH, 0.5 + ROW * pitch * len(names)) as (figure, axes):
        for index, (values, colour) in enumerate(zip(groups.values(), _colours(len(groups)), strict=True)):
            places = [row * pitch + index for row in range(len(names))]
            known = [value if value is not None and math.isfinite(value) else None for value in values]
            bars = axes.barh(places, [value or 0.0 for value in known], 0.8, color=colour)
            texts = ["absent" if value is None else f"{value:.1f}{unit}" for value in known]
            axes.bar_label(bars, texts, padding=3, color=INK)
        axes.set_yticks([row * pitch + (len(groups) - 1) / 2 for row in range(len(names))], names)
        axes.set(xlim=(0, 110), ylim=(len(names) * pitch - 0.75, -0.75))
        axes.tick_params(left=False, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        _legend(figure, list(groups))
        return _svg(figure, "bars per class")


@contextmanager
def _chart(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty chart, and the style while it is drawn and written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        # Only the layout asks matplotlib's own font; a reader's browser has the signs that it lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _legend(figure: Figure, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour) for colour in _colours(len(names))]
    figure.legend(patches, names, loc="outside upper left", ncols=4, handlelength=1, handleheight=1, columnspacing=1.2)


def _with_tips(svg: str, lines: Sequence[Series]) -> str:
    """Give every marked point its values, which a browser shows under the pointer; points stand in drawing order."""
    tips = iter(
        f"{line.name}: {y:.4g} at {x:.4g}"
        for line in lines
        if len(line.x) <= MAX_DOTS
        for x, y in zip(line.x, line.y, strict=True)
    )

    def titled(point: re.Match[str]) -> str:
        return f"{point[1]}><title>{escape(next(tips))}</title></use>"

    return re.sub(r"(<use [^>]*fill: var\(--c\d\)[^>]*)/>", titled, svg)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page: no head, no names of things that another chart has too."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    _, opening, body = re.split(r"(<svg\b[^>]*>)", text, maxsplit=1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    for variable, colour in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return f'<svg {box[0]} role="img" aria-label="{escape(name, quote=True)}">{body.strip()}'
