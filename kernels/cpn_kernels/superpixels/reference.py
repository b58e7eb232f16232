"""SLIC of published packages behind one convention: uint8 RGB in, labels 0..n-1 without gaps out."""

from __future__ import annotations

import numpy as np

COUNT_TOLERANCE = 0.1
"""A count this far from the asked one, as a share of it, is worth one more run."""


def relabel(labels: np.ndarray) -> np.ndarray:
    """Close the gaps of non-negative integer labels, keeping their order; int32."""
    used = np.bincount(labels.ravel()) > 0
    return (np.cumsum(used, dtype=np.int32) - 1)[labels]


def slic_skimage(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """SLIC of scikit-image; int32 [H, W].

    The library lays its seeds on a coarse grid and then merges small regions, so it misses the asked count by up to a
    third. Where it does, a second run asks for correspondingly more or fewer, and the nearer result is taken.
    """
    from skimage.segmentation import slic

    def run(asked: int) -> np.ndarray:
        return relabel(slic(image, n_segments=asked, compactness=compactness, start_label=0, enforce_connectivity=True))

    labels = run(segments)
    count = int(labels.max()) + 1
    if abs(count - segments) <= COUNT_TOLERANCE * segments:
        return labels
    second = run(max(1, round(segments * segments / count)))
    second_count = int(second.max()) + 1
    return second if abs(second_count - segments) < abs(count - segments) else labels


def slic_fast_slic(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """SLIC of the optional fast-slic package; int32 [H, W]."""
    try:
        from fast_slic import Slic
    except ImportError as error:
        raise ImportError("backend 'fast_slic' needs the package fast-slic: pip install fast-slic") from error
    labels = Slic(num_components=segments, compactness=compactness).iterate(np.ascontiguousarray(image))
    return relabel(labels.astype(np.int64))
