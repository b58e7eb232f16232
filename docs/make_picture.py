"""The picture on README's first screen: `python docs/make_picture.py RUN`, with a CPN run of `make demo`.

Three images that no training saw; from left to right the image, CAM, RCAM, the mask at the run's background score, and
the ground truth. Choose others by their ids: `python docs/make_picture.py RUN val_0003 val_0010`.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

from PIL import Image

from cpn_fast.data.sources.open import open_source
from cpn_fast.report.pictures import RowOptions, make_rows
from cpn_fast.runs.folder import RunFolder

OUTPUT = Path(__file__).parent / "images" / "overview.png"
COLUMNS = ("image", "CAM", "RCAM", "mask", "ground truth")
SIDE, GAP, COLOURS = 150, 6, 128
IMAGES = ("val_0003", "val_0010", "val_0021")


def make_picture(run: RunFolder, ids: tuple[str, ...]) -> Image.Image:
    """Rows of one image each, a transparent gap between the pictures.

    Args:
        run: a CPN run on generated images that has been scored (`cpn evaluate`).
        ids: of images of its `val` split.
    """
    source = open_source(run.config.data)
    records = [record for record in source.records("val") if record.id in ids]
    options = RowOptions(scales=(0.5, 1.0, 1.5), flip=True, max_side=1024, device="cpu", masks=None)
    rows = make_rows(run, source, records, options)
    size = (len(COLUMNS) * (SIDE + GAP) - GAP, len(rows) * (SIDE + GAP) - GAP)
    picture = Image.new("RGBA", size)
    for top, row in enumerate(rows):
        for left, column in enumerate(COLUMNS):
            content = base64.b64decode(row.pictures[column].partition(",")[2])
            with Image.open(io.BytesIO(content)) as opened:
                tile = opened.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.paste(tile, (left * (SIDE + GAP), top * (SIDE + GAP)))
    return picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    make_picture(RunFolder(Path(sys.argv[1])), tuple(sys.argv[2:]) or IMAGES).save(OUTPUT, optimize=True)
