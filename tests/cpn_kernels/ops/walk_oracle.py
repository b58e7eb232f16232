"""The random walk written a second time: the whole matrix, pair by pair, and its power, in float64."""

from __future__ import annotations

import numpy as np

# Rows of the half disc as ranges of columns, written out: 4 + 9 + 9 + 7 + 5 = 34 offsets.
HALF_DISC = [(0, dx) for dx in (1, 2, 3, 4)]
HALF_DISC += [(1, dx) for dx in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
HALF_DISC += [(2, dx) for dx in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
HALF_DISC += [(3, dx) for dx in (-3, -2, -1, 0, 1, 2, 3)]
HALF_DISC += [(4, dx) for dx in (-2, -1, 0, 1, 2)]


def transition_matrix(affinity: np.ndarray, power: int) -> np.ndarray:
    """[N, N] with columns that sum to 1, from one image's affinities [34, h, w]."""
    height, width = affinity.shape[1:]
    matrix = np.eye(height * width)
    for y in range(height):
        for x in range(width):
            for channel, (dy, dx) in enumerate(HALF_DISC):
                if y + dy < height and 0 <= x + dx < width:
                    one, other = y * width + x, (y + dy) * width + x + dx
                    matrix[one, other] = matrix[other, one] = float(affinity[channel, y, x]) ** power
    return matrix / matrix.sum(axis=0)


def dense_walk(affinity: np.ndarray, maps: np.ndarray, steps: int, power: int = 8) -> np.ndarray:
    """float64 [B, C, h, w] from affinities [B, 34, h, w] and maps [B, C, h, w]."""
    walked = [
        m.reshape(len(m), -1).astype(np.float64) @ np.linalg.matrix_power(transition_matrix(a, power), steps)
        for a, m in zip(affinity, maps, strict=True)
    ]
    return np.stack(walked).reshape(maps.shape)
