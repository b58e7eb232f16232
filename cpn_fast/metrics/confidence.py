"""How sure a mask is, as one number per image, to look at the doubtful ones first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def map_confidence(maps: NDArray[np.float32], beta: float) -> float:
    """How far, on average, a pixel's winner is above its rival, as a share of the most it could be.

    Args:
        maps: float32 [P, h, w] in 0..1, the maps of the classes in the image.
        beta: background score.

    Returns:
        0..1; 0 where classes are there but no pixel shows one, 1 for an image without classes.
    """
    if len(maps) == 0:
        return 1.0
    ordered = np.sort(maps, axis=0)
    best = ordered[-1]
    rival = np.maximum(ordered[-2], beta) if len(maps) > 1 else np.full_like(best, beta)
    foreground = best > np.float32(beta)
    if not foreground.any():
        return 0.0
    margin = np.where(foreground, (best - rival) / max(1 - beta, 1e-6), (beta - best) / max(beta, 1e-6))
    return float(margin.mean().clip(0, 1))


def probability_confidence(probabilities: NDArray[np.float32]) -> float:
    """How far, on average, a pixel's best class is above its second, in probability.

    Args:
        probabilities: float32 [C, h, w] in 0..1, background among them; those of the classes that a mask may hold.

    Returns:
        0..1; 1 where there is no second class.
    """
    if len(probabilities) < 2:
        return 1.0
    ordered = np.partition(probabilities, -2, axis=0)
    return float((ordered[-1] - ordered[-2]).mean().clip(0, 1))
