"""How well image labels are found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Average precision of one class: sum over thresholds of recall gained times precision; ties share a threshold.

    Args:
        scores: float [N], higher = more likely.
        truth: bool [N], at least one True.

    Returns:
        0..1.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # a threshold lies behind the last of equal scores
    precision = hits[last] / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(hits[last], prepend=0) / hits[-1] * precision))


def classifier_scores(probabilities: NDArray[np.floating], truth: NDArray[np.bool_]) -> dict[str, float | None]:
    """How well image labels are found.

    Args:
        probabilities: float [N, K] in 0..1.
        truth: bool [N, K].

    Returns:
        `map`, the mean average precision over classes that some images have and others lack (of one that all have it
        is 1 whatever the scores), and `f1` at threshold 0.5 over all decisions (micro); None where there is no such
        class, or no label at all.
    """
    if not truth.any():
        return {"map": None, "f1": None}
    told_apart = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    precisions = [average_precision(probabilities[:, k], truth[:, k]) for k in told_apart]
    found = probabilities > 0.5
    hits = (found & truth).sum()
    return {
        "map": float(np.mean(precisions)) if precisions else None,
        "f1": float(2 * hits / (found.sum() + truth.sum())),
    }
