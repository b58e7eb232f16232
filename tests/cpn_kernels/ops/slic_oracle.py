"""The native SLIC written a second time, in numpy and for clarity: whole images at once, scipy for the regions."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

UNIT, STEPS, ITERATIONS = 8, 8192, 10


def lab_eighths(image: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of uint8 [..., 3] in eighths of a unit, a and b shifted by 128 units; int64."""
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.floor(linear * 4 * STEPS + 0.5).astype(np.int64)
    matrix = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    matrix = np.round(matrix / matrix.sum(1, keepdims=True) * 2**15).astype(np.int64)
    t = np.arange(STEPS + 1) / STEPS
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    f = np.floor(f * 2**14 + 0.5).astype(np.int64)
    xyz = f[(linear[image] @ matrix.T + 2**16) >> 17]
    fx, fy, fz = xyz[..., 0], xyz[..., 1], xyz[..., 2]
    scaled = [116 * fy - 16 * 2**14, 500 * (fx - fy) + 128 * 2**14, 200 * (fy - fz) + 128 * 2**14]
    return np.stack([(UNIT * channel + 2**13) >> 14 for channel in scaled], -1)


def grid_shape(height: int, width: int, segments: int) -> tuple[int, int]:
    """Rows and columns of the grid with at least `segments` cells: few too many, near squares."""
    ideal = min(math.sqrt(segments * height / width), segments)
    choices = []
    for rows in range(max(1, math.ceil(ideal) - 1), height + 1):
        if rows > math.ceil(ideal) + 1 and choices:
            break
        columns = -(-segments // rows)
        if columns <= width:
            aspect = (height / rows) / (width / columns)
            cost = rows * columns / segments - 1 + 0.25 * (max(aspect, 1 / aspect) - 1)
            choices.append((cost, rows, columns))
    return min(choices)[1:]


def choose_clusters(image: np.ndarray, segments: int, compactness: float) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of every pixel after the iterations, and the clusters' colours [n, 3]."""
    height, width = image.shape[:2]
    rows, columns = grid_shape(height, width, segments)
    tops, lefts = np.arange(rows + 1) * height // rows, np.arange(columns + 1) * width // columns
    side = math.sqrt(height * width / (rows * columns))
    reach = 3 * math.hypot(math.ceil(height / rows), math.ceil(width / columns))
    scale = math.floor(min(UNIT * compactness / side, 15900 / reach) * 65536)
    y, x = np.mgrid[:height, :width]
    cell_row, cell_column = np.searchsorted(tops, y, "right") - 1, np.searchsorted(lefts, x, "right") - 1
    colour = lab_eighths(image)
    features = np.concatenate([colour, ((256 * np.stack([x, y], -1)) * scale) >> 24], -1)
    centres = np.zeros((rows * columns, 5), np.int64)
    stride = 3 if height // rows >= 12 else 2 if height // rows >= 8 else 1
    cluster = cell_row * columns + cell_column
    for iteration in range(ITERATIONS):
        # The means of the last choice, over the rows that were looked at.
        seen = (y + iteration) % stride == 0
        count = np.bincount(cluster[seen], minlength=rows * columns)
        full = count > 0
        sums = [
            np.bincount(cluster[seen], plane[seen], rows * columns) for plane in (*np.moveaxis(colour, -1, 0), x, y)
        ]
        mean = [np.floor((2 * total[full] + count[full]) / (2 * count[full])).astype(np.int64) for total in sums[:3]]
        for total, starts, own in zip(
            sums[3:],
            (lefts, tops),
            (np.arange(rows * columns) % columns, np.arange(rows * columns) // columns),
            strict=True,
        ):
            start = starts[own[full]]
            relative = (total[full].astype(np.int64) - start * count[full]) * 256
            mean.append((((2 * relative + count[full]) // (2 * count[full]) + 256 * start) * scale) >> 24)
        centres[full] = np.stack(mean, -1)
        best = np.full((height, width), np.iinfo(np.int64).max)
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                r, c = cell_row + down, cell_column + across
                there = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
                candidate = np.where(there, r * columns + c, 0)
                distance = ((features - centres[candidate]) ** 2).sum(-1)
                nearer = there & (distance < best)
                best, cluster = np.where(nearer, distance, best), np.where(nearer, candidate, cluster)
    return cluster, centres[:, :3]


def regions_of(cluster: np.ndarray) -> np.ndarray:
    """First pixel (raster order) of the connected region of every pixel."""
    out = np.zeros(cluster.shape, np.int64)
    pixels = np.arange(cluster.size).reshape(cluster.shape)
    for value in np.unique(cluster):
        pieces, count = ndimage.label(cluster == value)
        first = ndimage.minimum(pixels, pieces, np.arange(count + 1))
        out = np.where(pieces > 0, np.asarray(first)[pieces], out)
    return out


def slic(image: np.ndarray, segments: int, compactness: float = 10.0) -> np.ndarray:
    """Labels int64 [H, W] of a uint8 [H, W, 3] image."""
    height, width = image.shape[:2]
    segments = min(segments, height * width)
    cluster, colours = choose_clusters(image, segments, compactness)
    region = regions_of(cluster)
    firsts, sizes = np.unique(region, return_counts=True)
    order = sorted(range(len(firsts)), key=lambda i: (-sizes[i], i))
    target = {int(firsts[i]): int(firsts[i]) for i in order[:segments]}
    for first in map(int, firsts):
        if first in target:
            continue
        at, before = divmod(first, width), []
        if at[1] > 0:
            before.append((at[0], at[1] - 1))
        if at[0] > 0:
            before.append((at[0] - 1, at[1]))
        own = colours[cluster[at]]
        near = min(before, key=lambda p: int(((own - colours[cluster[p]]) ** 2).sum()), default=None)
        target[first] = target[int(region[near])] if near else -1  # -1: the lost region of pixel 0
    merged = np.vectorize(target.__getitem__)(region)
    if (merged < 0).any():
        beside = ndimage.binary_dilation(merged < 0) & (merged >= 0)
        merged[merged < 0] = merged.ravel()[np.flatnonzero(beside)[0]]
    return np.unique(merged, return_inverse=True)[1].reshape(merged.shape)
