"""Masks and images that the tests of all formats convert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpn_fast.files.masks import write_labelmap, write_mask

CLASSES = ("cat", "süßer hund", "z")
SIZE = (60, 80)


def masks() -> dict[str, NDArray[np.uint8]]:
    """A ring with an island, a block that touches a border, void, noise, nothing; with odd names."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(y - 30, x - 30)
    ring = np.zeros(SIZE, dtype=np.uint8)
    ring[distance < 22] = 1
    ring[distance < 10] = 0
    ring[distance < 5] = 3
    ring[40:60, 55:80] = 2
    void = ring.copy()
    void[:4] = 255
    void[distance < 5] = 255
    noise = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), (13, 17))
    return {
        "ring": ring,
        "sub folder/void ü.x": void,
        "#noise?": noise,
        "sub folder/images/nothing": np.zeros(SIZE, dtype=np.uint8),
    }


def without_void(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is left in a format that has no void."""
    return np.where(mask == 255, np.uint8(0), mask)


def write(root: Path) -> Path:
    """`root/masks` and `root/photos`."""
    for name, mask in masks().items():
        write_mask(root / "masks" / "SegmentationClass" / f"{name}.png", mask)
        image = root / "photos" / f"{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.shape[::-1], (9, 8, 7)).save(image)
    write_labelmap(root / "masks" / "labelmap.txt", CLASSES)
    return root / "masks"
