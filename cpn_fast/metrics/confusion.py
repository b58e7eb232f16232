"""Confusion counts of masks."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.types import VOID

log = logging.getLogger(__name__)


def confusion_of(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Confusion counts of one mask.

    Args:
        truth: uint8 [H, W]; void pixels (255) are left out.
        predicted: uint8 [H, W]; its void pixels count in the last column: missed by their class.
        num_classes: K foreground classes.

    Returns:
        int64 [K + 1, K + 2], rows the true class.
    """
    columns = num_classes + 2
    valid = truth != VOID
    claimed = np.where(predicted[valid] == VOID, num_classes + 1, predicted[valid])
    keys = truth[valid].astype(np.int64) * columns + claimed
    return np.bincount(keys, minlength=(num_classes + 1) * columns).reshape(num_classes + 1, columns)


def warn_without_foreground(data: str, confusion: NDArray[np.int64]) -> None:
    """Warn where the ground truth holds no class: masks that are all background would be perfect, so no score is given.

    Args:
        data: what was scored.
        confusion: counts, rows the true class.
    """
    if not confusion[1:].any():
        log.warning(
            "%s: no pixel of any class in the ground truth: all background would be perfect, so no score is given. Is "
            "255, which means void, meant as foreground? Write 1..%d there", data, len(confusion) - 1,
        )  # fmt: skip
