"""One picture of many masks, to look through at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.masks import VOID, voc_palette

CELL = 180
"""Side in pixels of the square in which an image is shown."""

_TEXT = 34
_GAP = 6


@dataclass(frozen=True)
class SheetItem:
    """One image of a sheet.

    Attributes:
        image: uint8 [H, W, 3].
        mask: uint8 [H, W], 0 background, 255 void.
        title: two lines at most.
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
    path: str | Path, items: Sequence[SheetItem], columns: int = 4, palette: NDArray[np.uint8] | None = None
) -> None:
    """Write a PNG with image and mask of every item side by side, in one step.

    Args:
        path: where to.
        items: in reading order.
        columns: pairs per row.
        palette: uint8 [256, 3]; None = VOC's.
    """
    palette = voc_palette() if palette is None else palette
    columns = min(columns, max(1, len(items)))
    rows = max(1, -(-len(items) // columns))
    width, height = 2 * CELL + 3 * _GAP, CELL + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for index, item in enumerate(items):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        draw.multiline_text((left, top), item.title, fill=(230, 230, 230), font=font, spacing=2)
        image, mask = fit(item.image), fit(item.mask, nearest=True)
        sheet.paste(Image.fromarray(image), (left, top + _TEXT))
        sheet.paste(Image.fromarray(overlay(image, mask, palette)), (left + CELL + _GAP, top + _TEXT))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
