"""What the dense CRF's kernels take, and how much of it one program."""

from __future__ import annotations

from torch import Tensor

from cpn_kernels.ops.dense_crf.native import MAX_CLASSES

CORNERS = 6
"""Corners of a simplex in the larger of the two lattices, that of position and colour."""


ROWS = 128
"""Rows of one program of the kernels, at most."""


def is_supported(probabilities: Tensor) -> bool:
    """Whether the kernels take probabilities [B, C, H, W]: they count an image's corners in 32 bits."""
    _, classes, height, width = probabilities.shape
    return classes <= MAX_CLASSES and CORNERS * height * width <= 2**31 - ROWS
