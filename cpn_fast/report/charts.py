"""Line and bar charts as SVG text, coloured by CSS variables of the page around them (no library, no network)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 40
SERIES_COLOURS = 6
MAX_POINTS = 300
ROW = 16

Place = Callable[[float, float], tuple[float, float]]


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


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


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
        y_from: lower end of the y axis; None = the smallest value.
        mark: a vertical line at this x, and what to write on it.

    Returns:
        An `<svg>` element; an empty string where no series has a finite point.
    """
    lines = [line for line in map(thinned, series) if line.x]
    if not lines:
        return ""
    x_low, x_high = _span([x for line in lines for x in line.x], None)
    y_low, y_high = _span([y for line in lines for y in line.y], y_from)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        _axes(x_low, x_high, y_low, y_high, place),
        _axis_names(x_label, y_label),
        _legend([s.name for s in lines]),
    ]
    if mark is not None and x_low <= mark[0] <= x_high:
        at = place(mark[0], y_low)[0]
        anchor = "end" if at > WIDTH * 0.7 else "start"
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        offset = -4 if anchor == "end" else 4
        parts.append(
            f'<text x="{at + offset:.1f}" y="{HEIGHT - BOTTOM - 6}" text-anchor="{anchor}">{escape(mark[1])}</text>'
        )
    for index, line in enumerate(lines):
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        colour = f"c{index % SERIES_COLOURS}"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        if len(points) <= 40:
            parts += [
                f'<circle class="dot {colour}" cx="{px:.1f}" cy="{py:.1f}" r="2.5">'
                f"<title>{escape(line.name)}: {_number(y)} at {_number(x)}</title></circle>"
                for (px, py), x, y in zip(points, line.x, line.y, strict=True)
            ]
    return _svg(HEIGHT, f"{y_label} over {x_label}", parts)


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
    label_width = min(160, 8 + 7 * max(map(len, names)))
    scale = (WIDTH - label_width - 60) / 100
    pitch = ROW * len(groups) + 8
    parts = [_legend(list(groups))]
    for row, name in enumerate(names):
        top = TOP + row * pitch
        middle = top + ROW * len(groups) / 2 + 4
        parts.append(f'<text x="{label_width - 6}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        for index, values in enumerate(groups.values()):
            value = values[row]
            y = top + index * ROW
            known = value is not None and math.isfinite(value)
            length = max(0.0, value * scale) if known and value is not None else 0.0
            text = f"{value:.1f}{unit}" if known else "absent"
            parts.append(
                f'<rect class="bar c{index % SERIES_COLOURS}" x="{label_width}" y="{y + 1}" '
                f'width="{length:.1f}" height="{ROW - 3}" rx="2"/>'
            )
            parts.append(f'<text class="value" x="{label_width + length + 5:.1f}" y="{y + ROW - 4}">{text}</text>')
    return _svg(TOP + len(names) * pitch + 6, "bars per class", parts)


def _svg(height: float, name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(name, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def _span(values: Sequence[float], low: float | None) -> tuple[float, float]:
    """Ends of an axis that holds all values and is never empty."""
    start, end = min(values) if low is None else low, max(values)
    return (start, end) if end > start else (start - 0.5, start + 0.5)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _axes(x_low: float, x_high: float, y_low: float, y_high: float, place: Place) -> str:
    parts = []
    for y in ticks(y_low, y_high):
        height = place(x_low, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in ticks(x_low, x_high, 6):
        across = place(x, y_low)[0]
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_number(x)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    return "".join(parts)


def _axis_names(x_label: str, y_label: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )


def _legend(names: Sequence[str]) -> str:
    parts, x = [], float(LEFT)
    for index, name in enumerate(names):
        parts.append(f'<rect class="bar c{index % SERIES_COLOURS}" x="{x:.0f}" y="8" width="12" height="12" rx="3"/>')
        parts.append(f'<text x="{x + 17:.0f}" y="18">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    return "".join(parts)
