"""The report as HTML: sections from parts that are there, one file, nothing loaded from anywhere.

What is said and how it looks stands in templates/. Everything put into them is escaped, but for the charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cpn_fast.files.palette import page_palette
from cpn_fast.report.pictures import Row

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

COLUMNS = ("image", "ground truth", "CAM", "RCAM", "mask")
TEMPLATES = Path(__file__).with_name("templates")


def page(title: str, subtitle: str, sections: Iterable[Markup]) -> str:
    """The whole document, of sections made by the functions below."""
    return str(_render("page", title=title, subtitle=subtitle, sections=list(sections)))


def tiles(figures: Mapping[str, str]) -> Markup:
    """The key figures: label -> value as text."""
    return _render("tiles", figures=figures)


def note(text: str) -> Markup:
    """A sentence on what is missing and what to do."""
    return _render("note", text=text)


def charts(heading: str, drawn: Mapping[str, str], explanation: str = "") -> Markup:
    """A section of charts, caption -> SVG; empty ones are left out, and the section with them."""
    return _render(
        "charts", heading=heading, drawn={k: svg for k, svg in drawn.items() if svg}, explanation=explanation
    )


def picture_rows(
    rows: Sequence[Row], classes: Sequence[str], explanation: str, all_columns: Sequence[str] = COLUMNS
) -> Markup:
    """The table of pictures, with a legend of the classes that are in it.

    Args:
        rows: the images.
        classes: the K foreground class names.
        explanation: what is to be seen.
        all_columns: names of pictures in their order; those that no row has are left out.
    """
    palette = page_palette()
    used = sorted({label for row in rows for label in row.labels})
    legend = [(classes[label], palette[label + 1].tolist()) for label in used]
    legend += [("background", [0, 0, 0]), ("void", [255, 255, 255])]
    columns = [name for name in all_columns if any(name in row.pictures for row in rows)]
    return _render("pictures", rows=rows, classes=classes, explanation=explanation, legend=legend, columns=columns)


def table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]], explanation: str = "") -> Markup:
    """A section with one table of texts, the first column left-aligned and the others as figures."""
    return _render("table", heading=heading, columns=columns, rows=list(rows), explanation=explanation)


def settings(heading: str, values: Mapping[str, object]) -> Markup:
    """A list of names and values."""
    return _render("settings", heading=heading, settings=values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _render(name: str, **values: object) -> Markup:
    from markupsafe import Markup

    return Markup(_environment().get_template(f"{name}.html").render(values))
