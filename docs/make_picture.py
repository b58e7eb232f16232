"""The picture on README's first screen: `python docs/make_picture.py RUN`, with a run that knows cat and person.

Two photographs that scikit-image ships (Chelsea the cat by S. van der Walt, CC0; Eileen Collins, NASA, public domain),
neither of them trained on; side by side the photograph, the run's CAM of the class, the refined map (RCAM), the mask.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

import cpn_fast
from cpn_fast.files.palette import page_palette
from cpn_fast.report.pictures import heat

OUTPUT = Path(__file__).parent / "images" / "overview.png"
HEIGHT, GAP, COLOURS = 150, 6, 192
BETA = 0.44


def photographs() -> list[tuple[NDArray[np.uint8], str]]:
    """(uint8 [H, W, 3], its class), about as large as in training."""
    return [(data.chelsea(), "cat"), (data.astronaut()[:400, 40:440], "person")]


def tiles(model: cpn_fast.Model) -> list[list[Image.Image]]:
    """For each photograph: itself, CAM and RCAM of its class over its grey values, and the mask."""
    plain, refined = (model.labeller(refine=how, beta=BETA) for how in ("none", "raw"))
    rows = []
    for pixels, name in photographs():
        image = np.ascontiguousarray(pixels)
        cam, rcam = (labeller(image, labels=[name]) for labeller in (plain, refined))
        classes = np.array([rcam.classes.index(name)])
        maps = [heat(image, classes, found.maps) for found in (cam, rcam)]
        rows.append([_tile(part) for part in (image, *maps, page_palette()[rcam.mask])])
    return rows


def _tile(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS).convert("RGBA")


def compose(rows: list[list[Image.Image]]) -> Image.Image:
    """All tiles in rows, a transparent gap between them."""
    width = max(sum(tile.width + GAP for tile in row) for row in rows) - GAP
    picture = Image.new("RGBA", (width, len(rows) * (HEIGHT + GAP) - GAP))
    for number, row in enumerate(rows):
        left = 0
        for tile in row:
            picture.paste(tile, (left, number * (HEIGHT + GAP)))
            left += tile.width + GAP
    return picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    compose(tiles(cpn_fast.load(sys.argv[1]))).save(OUTPUT, optimize=True)
