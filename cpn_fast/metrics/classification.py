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
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    # Ranks, for the library rounds scores to float32 and squashes those outside 0..1, which makes ties.
    _, ranks = np.unique(scores, return_inverse=True)
    ranked = torch.from_numpy(ranks.reshape(-1) / max(1, len(ranks)))
    return float(binary_average_precision(ranked, torch.from_numpy(np.asarray(truth)).long()))


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
