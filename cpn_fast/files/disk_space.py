"""What results take on disk, said and checked before the work begins."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import image_size
from cpn_fast.files.member import ImageFile

MASK_BYTES, SOFT_BYTES = 0.04, 0.3
"""Per pixel on disk, generous: masks of coco_mini came to 0.02, soft maps to 0.1 per class with 1.5 classes."""
FILE_BYTES = 1000
"""Of a file's header, its place in the folder and its line in the manifest."""
USUAL_PIXELS = 250_000
"""Of an image whose size is not known."""


def check_disk_space(output: Path, what: str, needed: float) -> str:
    """Refuse work whose results do not fit on the disk.

    Args:
        output: a folder that is there.
        what: the results, for the error, e.g. "masks".
        needed: bytes.

    Returns:
        a sentence for the terminal.

    Raises:
        DataError: where less is free.
    """
    free = shutil.disk_usage(output).free
    if needed > free:
        raise DataError(
            f"{output}: the {what} need about {needed / 1e6:.1f} MB but {free / 1e6:.1f} MB are free; free some or "
            "give another --output"
        )
    return f"disk: about {needed / 1e6:.1f} MB, {free / 1e9:.1f} GB free at {output}"


def mean_pixels(images: Sequence[ImageFile], looked_at: int = 16) -> float:
    """Mean width x height over a few images, from their headers; 0.25 million where none can be read."""
    found = []
    for path in images[:: max(1, len(images) // looked_at)]:
        try:
            width, height = image_size(path)
        except DataError:
            continue
        found.append(width * height)
    return sum(found) / len(found) if found else USUAL_PIXELS
