"""One picture of many masks, to look through at a glance."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.errors import DataError
from cpn_fast.files.lettering import draw_text, shortened, text_length
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.masks import VOID
from cpn_fast.files.palette import voc_palette

CELL = 180
"""Side in pixels of the square in which an image is shown."""

SHEET_NAME = "contact_sheet.png"

NOTE = "least confident first; the number is the confidence, 0 to 1: how far the best class leads, over all pixels"

_TEXT, _LINE, _SWATCH = 34, 20, 13
_FONT_SIZE, _TEXT_LINE = 13, 16
_GAP = 6
_PAPER, _INK = (24, 24, 24), (230, 230, 230)


@dataclass(frozen=True)
class SheetItem:
    """One image of a sheet.

    Attributes:
        image: uint8 [H, W, 3].
        mask: uint8 [H, W], 0 background, 255 void.
        title: two lines at most; a longer one is shortened in its middle.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    title: str


def overlay(image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with each class in its colour at 60%; background is dimmed grey, void white.

    Args:
        image: uint8 [H, W, 3].
        mask: uint8 [H, W].
        palette: uint8 [256, 3].

    Returns:
        uint8 [H, W, 3].
    """
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    coloured = 0.4 * grey + 0.6 * palette[mask]
    shown = np.where((mask == 0)[:, :, None], 0.55 * grey, coloured)
    return np.where((mask == VOID)[:, :, None], 0.4 * grey + 0.6 * 255, shown).astype(np.uint8)


def fit(pixels: NDArray[np.uint8], nearest: bool = False) -> NDArray[np.uint8]:
    """Scale an image or mask to fit a square of `CELL` pixels, keeping the aspect."""
    height, width = pixels.shape[:2]
    scale = CELL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def write_contact_sheet(
    path: str | Path,
    items: Sequence[SheetItem],
    columns: int = 4,
    palette: NDArray[np.uint8] | None = None,
    classes: Sequence[str] = (),
    note: str = "",
) -> None:
    """Write a PNG with image and mask of every item side by side, under a legend, in one step.

    Args:
        path: where to.
        items: in reading order.
        columns: pairs per row.
        palette: uint8 [256, 3]; None = VOC's.
        classes: names of mask values 1..K; those in the masks are named with their colours.
        note: what the numbers in the titles are; above the legend.
    """
    palette = voc_palette() if palette is None else palette
    columns = min(columns, max(1, len(items)))
    rows = max(1, -(-len(items) // columns))
    width, height = 2 * CELL + 3 * _GAP, CELL + _TEXT + _GAP
    across = columns * width + _GAP
    legend = _legend(items, classes, palette, note, across)
    sheet = Image.new("RGB", (across, legend.height + rows * height + _GAP), _PAPER)
    sheet.paste(legend, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, item in enumerate(items):
        left, top = _GAP + index % columns * width, legend.height + _GAP + index // columns * height
        for number, line in enumerate(item.title.split("\n", 1)):
            shown = shortened(line, _FONT_SIZE, width - 2 * _GAP)
            draw_text(draw, (left, top + number * _TEXT_LINE), shown, _FONT_SIZE, _INK)
        image, mask = fit(item.image), fit(item.mask, nearest=True)
        sheet.paste(Image.fromarray(image), (left, top + _TEXT))
        sheet.paste(Image.fromarray(overlay(image, mask, palette)), (left + CELL + _GAP, top + _TEXT))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def write_least_confident(
    folder: MaskFolder,
    images: Mapping[str, Callable[[], NDArray[np.uint8]]],
    count: int,
    classes: Sequence[str],
    palette: NDArray[np.uint8] | None = None,
) -> Path | None:
    """The contact sheet of the least confident masks of a folder, by the `confidence` in its manifest.

    Args:
        folder: the masks.
        images: id -> reads the image, uint8 [H, W, 3]; masks of other images are not shown.
        count: masks on the sheet; 0 = no sheet.
        classes: names of mask values 1..K.
        palette: uint8 [256, 3]; None = VOC's.

    Returns:
        The sheet, None where there is nothing to show.
    """
    known = folder.manifest().stream() if count else ()
    entries = (entry for entry in known if entry["id"] in images and _is_shown(entry))
    items = []
    for entry in heapq.nsmallest(count, entries, key=lambda entry: (entry["confidence"], entry["id"])):
        try:
            image, mask = images[entry["id"]](), folder.read(entry["id"])
        except DataError:
            continue  # gone since it was labelled; the sheet is a convenience
        title = f"{entry['id']}\n{entry['confidence']:.2f}  {', '.join(entry.get('labels') or ())}"
        items.append(SheetItem(image, mask, title))
    if not items:
        return None
    path = folder.root / SHEET_NAME
    write_contact_sheet(path, items, palette=palette, classes=classes, note=NOTE)
    return path


def _is_shown(entry: Mapping[str, Any]) -> bool:
    return entry.get("status") == "ok" and isinstance(entry.get("confidence"), int | float)


def _legend(
    items: Sequence[SheetItem], classes: Sequence[str], palette: NDArray[np.uint8], note: str, width: int
) -> Image.Image:
    """The note and the classes that the masks hold with their colours, in lines of the sheet's width."""
    held = np.zeros(256, dtype=bool)
    for item in items:
        held[np.unique(item.mask)] = True
    values = [int(value) for value in np.flatnonzero(held) if 0 < value <= len(classes)]
    named = [(palette[value], classes[value - 1]) for value in values]
    named += [(np.full(3, 255, np.uint8), "void")] if classes and held[VOID] else []
    places, left, line = [], _GAP, 1 if note else 0
    for colour, name in named:
        need = _SWATCH + _GAP + round(text_length(name, _FONT_SIZE)) + 3 * _GAP
        if left + need > width and left > _GAP:
            left, line = _GAP, line + 1
        places.append((left, line, colour, name))
        left += need
    lines = line + 1 if named else line
    legend = Image.new("RGB", (width, lines * _LINE + (_GAP if lines else 0)), _PAPER)
    draw = ImageDraw.Draw(legend)
    if note:
        draw_text(draw, (_GAP, _GAP), shortened(note, _FONT_SIZE, width - 2 * _GAP), _FONT_SIZE, _INK)
    for left, line, colour, name in places:
        top = _GAP + line * _LINE
        draw.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=tuple(int(part) for part in colour))
        draw_text(draw, (left + _SWATCH + _GAP, top), name, _FONT_SIZE, _INK)
    return legend
