"""Reference implementation of the random walk, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 5
"""Pixels nearer than this to one another have an affinity."""

REACH = RADIUS - 1
"""Largest step along a row or a column."""

OFFSETS = tuple(
    (dy, dx)
    for dy in range(RADIUS)
    for dx in range(-REACH, RADIUS)
    if (dy, dx) > (0, 0) and dy * dy + dx * dx < RADIUS * RADIUS
)
"""(rows down, columns to the right) from a pixel to its partner, for the 34 channels of an affinity: half a disc."""


def raised(affinity: Tensor, power: int) -> Tensor:
    """affinity ** power for a power >= 1, by squarings."""
    result = None
    while True:
        if power % 2:
            result = affinity if result is None else result * affinity
        power //= 2
        if not power:
            assert result is not None
            return result
        affinity = affinity * affinity


def transition(affinity: Tensor) -> Tensor:
    """Column-normalised weights over the full disc.

    Args:
        affinity: float [B, 34, h, w]; entry k of pixel j belongs to the pair (j, j + OFFSETS[k]).

    Returns:
        float [B, 69, h, w]: of pixel j itself, then for each offset of the pixel ahead (j + offset) and of the pixel
        behind (j - offset). 0 for pixels outside of the grid; they sum to 1.
    """
    height, width = affinity.shape[2:]
    planes = [torch.ones_like(affinity[:, 0])]
    for channel, (dy, dx) in enumerate(OFFSETS):
        top, left, right = min(dy, height), min(max(0, -dx), width), min(max(0, dx), width)
        # What an entry says of a pair that leaves the grid is not read, whatever it is.
        pairs = affinity[:, channel, : height - top, left : max(width - right, left)]
        beside = width - left - pairs.shape[2]
        planes.append(F.pad(pairs, (left, beside, 0, top)))
        planes.append(F.pad(pairs, (beside, left, top, 0)))
    weights = torch.stack(planes, dim=1)
    return weights / weights.sum(dim=1, keepdim=True)


def random_walk(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Maps [B, C, h, w] after the steps; `affinity` as it weighs, its power taken. See the public function."""
    height, width = maps.shape[2:]
    weights = transition(affinity)
    for _ in range(steps):
        around = F.pad(maps, (REACH, REACH, REACH, REACH))
        maps = weights[:, :1] * maps
        for channel, (dy, dx) in enumerate(OFFSETS):
            for plane, y, x in ((2 * channel + 1, dy, dx), (2 * channel + 2, -dy, -dx)):
                moved = around[:, :, REACH + y : REACH + y + height, REACH + x : REACH + x + width]
                maps = maps + weights[:, plane, None] * moved
    return maps
