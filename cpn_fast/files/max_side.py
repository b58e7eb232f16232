"""The `--max-side` rule: larger images are reduced before labelling and what was found is enlarged back.

Both labelling programs use it, so their masks agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def reduced_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """The (height, width) in pixels of an image whose long side may be `max_side` at most; the aspect is kept."""
    longest = max(height, width)
    if longest <= max_side:
        return height, width

    def scaled(side: int) -> int:
        return max(1, (side * max_side + longest // 2) // longest)

    return scaled(height), scaled(width)


def reduce_image(image: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """Reduce an image to a long side of `max_side` (antialiased bilinear); a smaller one is returned as it is.

    Args:
        image: uint8 [H, W, 3].
        max_side: in pixels, at least 1.

    Returns:
        uint8 [h, w, 3] with max(h, w) <= max_side.
    """
    height, width = image.shape[:2]
    size = reduced_size(height, width, max_side)
    if size == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def enlarge(plane: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Bring a mask or any map [..., h, w] to image size, each pixel taking the nearest value.

    Args:
        plane: any dtype, [..., h, w].
        height: of the image.
        width: of the image.

    Returns:
        [..., height, width] of the same dtype; the input itself where the size is right already.
    """
    h, w = plane.shape[-2:]
    if (h, w) == (height, width):
        return plane
    rows = (2 * np.arange(height) + 1) * h // (2 * height)
    columns = (2 * np.arange(width) + 1) * w // (2 * width)
    return plane[..., rows[:, None], columns[None, :]]
