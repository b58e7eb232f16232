"""The outcome of a check as one HTML page with sample pictures, which loads nothing from anywhere.

What is said and how it looks stands in templates/; everything put into them is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from cpn_fast.data.check.tables import all_tables
from cpn_fast.data.sources.spread import spread
from cpn_fast.data.types import Record, Source
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError

if TYPE_CHECKING:
    from cpn_fast.data.check.report import CheckReport

SIDE = 160
"""Long side of a picture in pixels."""

MAX_CLASSES = 40
PER_CLASS = 4
MAX_LINES = 200
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Picture:
    """A sample.

    Attributes:
        id: of its record.
        labels: its classes.
        uri: the picture itself.
        width: in pixels.
        height: in pixels.
    """

    id: str
    labels: str
    uri: str
    width: int
    height: int


def write_page(path: Path, report: CheckReport, source: Source) -> None:
    """Write the page of a checked source.

    Raises:
        DataError: if the file cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    whole = report.splits.get("all")
    counts = [whole] if whole else list(report.splits.values())
    figures = {
        "images" if whole else "images per split": ", ".join(str(count.images) for count in counts),
        "classes": str(len(report.classes)),
        "splits": str(len(report.splits)),
        "problems": str(len(report.problems)),
        "warnings": str(len(report.warnings)),
    }
    lists = [
        ("Problems", "problem", report.problems),
        ("Warnings", "warning", report.warnings),
        ("Notes", "note", report.notes),
    ]
    samples = _samples(report, source)
    explanation = f"{PER_CLASS} images of each class at even distances."
    if len(report.classes) > MAX_CLASSES:
        explanation += f" The first {MAX_CLASSES} of {len(report.classes)} classes."
    text = environment.get_template("check.html").render(
        report=report, figures=figures, lists=lists, tables=all_tables(report), samples=samples,
        explanation=explanation, limit=MAX_LINES,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text)


def _samples(report: CheckReport, source: Source) -> list[tuple[str, list[Picture]]]:
    """Of each class a few pictures, and of the images without one; a picture is read once."""
    by_class: dict[int | None, dict[str, Record]] = {}
    for split in report.splits:
        for record in _usable(source, split):
            for number in record.labels or (None,):
                by_class.setdefault(number, {}).setdefault(record.id, record)
    made: dict[str, Picture | None] = {}
    groups: list[tuple[str, list[Picture]]] = []
    for number in [*range(min(len(report.classes), MAX_CLASSES)), None]:
        records = list(by_class.get(number, {}).values())
        pictures = []
        for record in spread(records, PER_CLASS) if records else ():
            if record.id not in made:
                made[record.id] = _picture(source, record, report.classes)
            if (picture := made[record.id]) is not None:
                pictures.append(picture)
        if pictures:
            groups.append(("without a class" if number is None else report.classes[number], pictures))
    return groups


def _usable(source: Source, split: str) -> Sequence[Record]:
    from cpn_fast.data.sources.base import FileSource

    return source.scan(split).records if isinstance(source, FileSource) else source.records(split)


def _picture(source: Source, record: Record, classes: Sequence[str]) -> Picture | None:
    """The picture of a record; None for one that cannot be read, which is a problem already."""
    try:
        image = Image.fromarray(source.read(record).image)
    except DataError:
        return None
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=80)
    uri = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    labels = "not labelled" if record.labels is None else ", ".join(classes[number] for number in record.labels)
    return Picture(record.id, labels or "none of the classes", uri, *image.size)
