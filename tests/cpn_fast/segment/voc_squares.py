"""A tiny data set in VOC's layout for the tests of segmentation: coloured rectangles, each class of one colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cpn_fast.files.masks import write_mask

COLOURS = np.array([[90, 90, 90], [230, 30, 30], [30, 220, 30], [30, 30, 230]], dtype=np.uint8)
"""Of background, aeroplane, bicycle and bird."""
NAMES = ("aeroplane", "bicycle", "bird")


def draw(seed: int, height: int, width: int) -> np.ndarray:
    """A mask uint8 [H, W] with two rectangles of different classes, a background border and void between."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    left, right = rng.permutation(np.arange(1, 4))[:2]
    top, bottom, middle = height // 6, height - height // 5, width // 2 + int(rng.integers(-4, 5))
    mask[top:bottom, width // 8 : middle] = left
    mask[top + 3 : bottom, middle : width - width // 8] = right
    mask[top:bottom, middle] = 255
    return mask


def paint(mask: np.ndarray) -> np.ndarray:
    """The image uint8 [H, W, 3] of a mask; void shows background."""
    return COLOURS[np.where(mask == 255, 0, mask)]


def make(root: Path, train: int = 4, val: int = 3) -> Path:
    """Write the data set; images have several sizes."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    number = 0
    for split, count in (("train", train), ("val", val)):
        names = []
        for _ in range(count):
            name = f"{split}_{number}"
            mask = draw(number, *((48, 64) if number % 3 else (60, 44)))
            Image.fromarray(paint(mask)).save(root / "JPEGImages" / f"{name}.png")
            write_mask(root / "SegmentationClass" / f"{name}.png", mask)
            objects = "".join(f"<object><name>{NAMES[value - 1]}</name></object>" for value in np.unique(mask)[1:-1])
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
            names.append(name)
            number += 1
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root
