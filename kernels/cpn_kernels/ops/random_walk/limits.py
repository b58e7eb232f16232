"""What the random walk's kernel takes, and how much of it one program."""

from __future__ import annotations

import math

from torch import Tensor

BLOCK = 128
"""Pixels of one program of the kernel."""


TOGETHER = 4
"""Maps of one program, which share the affinities once they are loaded. With more of them, most of a GPU would be idle:
an image has some thousands of pixels."""


def launch_grid(maps: Tensor) -> tuple[int, int, int]:
    """Programs over the pixels of an image, over its maps, and over the images, for maps [B, C, h, w]."""
    batch, classes, height, width = maps.shape
    return -(-height * width // BLOCK), -(-classes // TOGETHER), batch


def is_supported(maps: Tensor) -> bool:
    """Whether the kernel takes maps of this size: it counts an image's pixels, and its programs, in 32 bits."""
    return maps.shape[2] * maps.shape[3] <= 2**31 - BLOCK and math.prod(launch_grid(maps)) < 2**31
