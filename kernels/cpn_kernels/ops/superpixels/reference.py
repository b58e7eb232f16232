"""SLIC of published packages behind one convention: uint8 RGB in, labels 0..n-1 without gaps out."""

from __future__ import annotations

import importlib
import math

import numpy as np

COUNT_TOLERANCE = 0.1
"""A count this far from the asked one, as a share of it, is worth one more run."""

BORDER_LOSS = 3.8
"""scikit-image loses about this times sqrt(asked) of the asked segments, measured on photographs at 50, 200 and 500."""

SMALL_COUNT = 20
"""Below this the loss says nothing, and the asked count is asked for."""


def relabel(labels: np.ndarray) -> np.ndarray:
    """Close the gaps of non-negative integer labels, keeping their order; int32."""
    used = np.bincount(labels.ravel()) > 0
    return (np.cumsum(used, dtype=np.int32) - 1)[labels]


def slic_skimage(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """SLIC of scikit-image; int32 [H, W].

    The library lays its seeds on a coarse grid and then merges small regions, mostly those at the border: asked for 200
    on photographs it gives 150. So more are asked for, and where the count is still off, a second run corrects the
    request and the nearer result is taken.
    """
    from skimage.segmentation import slic

    def run(asked: int) -> np.ndarray:
        labels = slic(image, n_segments=asked, compactness=compactness, start_label=0, enforce_connectivity=True)
        return relabel(labels)

    asked = segments if segments < SMALL_COUNT else round(segments * (1 + BORDER_LOSS / math.sqrt(segments)))
    labels = run(asked)
    count = int(labels.max()) + 1
    if abs(count - segments) <= COUNT_TOLERANCE * segments:
        return labels
    second = run(max(1, round(asked * segments / count)))
    second_count = int(second.max()) + 1
    return second if abs(second_count - segments) < abs(count - segments) else labels


def slic_fast_slic(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """SLIC of the optional fast-slic package; int32 [H, W]."""
    try:
        fast_slic = importlib.import_module("fast_slic")
    except ImportError as error:
        raise ImportError("backend 'fast-slic' needs the package fast-slic: pip install fast-slic") from error
    labels = fast_slic.Slic(num_components=segments, compactness=compactness).iterate(np.ascontiguousarray(image))
    return relabel(labels.astype(np.int64))
