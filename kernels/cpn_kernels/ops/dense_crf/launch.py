"""Launches of the dense CRF's kernels: lattices as tables for gathers, built with torch where the tensors are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from cpn_kernels.backend import on_its_device
from cpn_kernels.ops.dense_crf import reference
from cpn_kernels.ops.dense_crf.limits import ROWS
from cpn_kernels.ops.dense_crf.triton_kernel import blur_kernel, sum_kernel, update_kernel

CHUNK = 32
"""Entries of one sum. A point of a flat image owns most of its pixels, one of a rough image a single one: longer sums
are cut, and their parts added in sums of their own, so that no program waits for a long one."""


TOGETHER = 2**20
"""Pixels whose images are refined together: five of VOC's, with a fifth of the launches. Their lattices take about a GB
while they are made."""


def row_width(classes: int) -> int:
    """Columns of a row that holds so many classes."""
    return triton.next_power_of_2(classes)


def block_rows(width: int) -> int:
    """Rows of one program, for rows of `width` columns: a tile of 2048 numbers, if that is no more than `ROWS`."""
    return min(ROWS, 2048 // width)


def _chunks(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts runs of so many entries, >= 1, into chunks: begins int32 [chunks + 1], and chunks of each run."""
    pieces = (counts + CHUNK - 1) // CHUNK
    ends, piece_ends = counts.cumsum(0), pieces.cumsum(0)
    run = torch.arange(len(counts), device=counts.device).repeat_interleave(pieces)
    within = torch.arange(len(run), device=counts.device) - (piece_ends - pieces)[run]
    return torch.cat([(ends - counts)[run] + CHUNK * within, ends[-1:]]).int(), pieces


class Filter:
    """A lattice and its weight: `reference.Lattice` as tables, with the pixels' normalisation in the weights.

    Attributes:
        points: int32 [D + 1, n], the lattice points of each pixel's corners.
        weights: float32 [D + 1, n], barycentric, times the pixel's normalisation.
        compat: weight of the filter.

    Args:
        features: float64 [n, D].
        compat: weight of the filter.
        images: of which the features are, one behind the other.

    Raises:
        ValueError: where the features span too many lattice points to number.
    """

    def __init__(self, features: Tensor, compat: float, images: int = 1) -> None:
        lattice = reference.Lattice(features, images)
        self.points, self.compat = lattice.points.T.int().contiguous(), compat
        self._neighbours = lattice.neighbours.int()
        barycentric = lattice.weights.T.float().contiguous()
        owners, order = self.points.flatten().sort(stable=True)
        self._pixels = (order % len(features)).int()
        self._levels = self._cut(owners, lattice.neighbours.shape[1])
        # The filter's answer to ones takes the way that values take later, with weights not yet normalised.
        ones = self._spread(barycentric.new_ones(len(features), 1), barycentric.flatten()[order])[:, 0]
        self.weights = barycentric * (ones[lattice.points.T] * barycentric).sum(0).rsqrt()
        self._entry_weights = self.weights.flatten()[order]

    @staticmethod
    def _cut(owners: Tensor, points: int) -> list[Tensor]:
        """Begins of the chunks of each level: entries by their sorted owners, then chunks, until a point has one."""
        begins = torch.searchsorted(owners, torch.arange(points + 1, device=owners.device))
        counts = begins.diff()
        levels: list[Tensor] = []
        while not levels or int(counts.max()) > 1:
            found, counts = _chunks(counts)
            levels.append(found)
        return levels

    def spread(self, q: Tensor) -> Tensor:
        """Splat and blur: float32 [n, width] -> [m, width]."""
        return self._spread(q, self._entry_weights)

    def _spread(self, q: Tensor, entry_weights: Tensor) -> Tensor:
        held, width = q, q.shape[1]
        rows = block_rows(width)
        for level, begins in enumerate(self._levels):
            count = len(begins) - 1
            sums = q.new_empty(count, width)
            sum_kernel[(triton.cdiv(count, rows),)](
                *(held, self._pixels, entry_weights, begins, sums, count),
                ROWS=rows,
                WIDTH=width,
                WEIGHTED=level == 0,
            )
            held = sums
        other = torch.empty_like(held)
        for axis in range(len(self._neighbours)):
            grid = (triton.cdiv(len(held), rows),)
            blur_kernel[grid](held, self._neighbours, other, axis, len(held), ROWS=rows, WIDTH=width)
            held, other = other, held
        return held


def _update(log_probabilities: Tensor, q: Tensor, filters: Sequence[Filter], values: Sequence[Tensor]) -> None:
    """Softmax into q of the unary term and of what at most two filters hold; all [n, width]."""
    pixels, width = q.shape
    rows = block_rows(width)
    absent = (q, q, q, 0.0)  # not read, for want of corners
    tables = [(each.points, each.weights, held, each.compat) for each, held in zip(filters, values, strict=True)]
    first, second = (tables + 2 * [absent])[:2]
    corners = [len(each.points) for each in filters] + [0, 0]
    update_kernel[(triton.cdiv(pixels, rows),)](
        *(log_probabilities, q, *first, *second, pixels),
        ROWS=rows,
        WIDTH=width,
        CORNERS=corners[0],
        MORE_CORNERS=corners[1],
    )


def mean_field(log_probabilities: Tensor, iterations: int, filters: Sequence[Filter]) -> Tensor:
    """Mean field of the pixels of one image or several; see `reference.mean_field`.

    Args:
        log_probabilities: minus the unary energy, float32 [n, C].
        iterations: >= 0.
        filters: at most two.

    Returns:
        Probabilities, float32 [n, C].
    """
    classes = log_probabilities.shape[1]
    padded = F.pad(log_probabilities, (0, row_width(classes) - classes), value=float("-inf")).contiguous()
    q = torch.empty_like(padded)
    _update(padded, q, [], [])
    for _ in range(iterations):
        _update(padded, q, filters, [each.spread(q) for each in filters])
    return q[:, :classes]


@on_its_device
def dense_crf(
    images: Tensor,
    log_probabilities: Tensor,
    iterations: int,
    gaussian: Sequence[float],
    bilateral: Sequence[float],
    gaussian_compat: float,
    bilateral_compat: float,
) -> Tensor:
    """Mean field of each image, several together; arguments as in `native.dense_crf`, on one device.

    Which images are together changes no bit: sums are over the same entries in the same order.
    """
    out = torch.empty_like(log_probabilities, memory_format=torch.contiguous_format)
    together = min(len(images), max(1, TOGETHER // (images.shape[1] * images.shape[2])))

    @cache
    def by_place(count: int) -> list[Filter]:  # the same for all images of the call
        places = reference.features(images[0], gaussian).repeat(count, 1)
        return [Filter(places, gaussian_compat, count)] if gaussian_compat else []

    def by_colour(part: Tensor) -> list[Filter]:
        if not bilateral_compat:
            return []
        return [
            Filter(torch.cat([reference.features(image, bilateral) for image in part]), bilateral_compat, len(part))
        ]

    def refine(first: int, count: int) -> None:
        filters = by_place(count) + by_colour(images[first : first + count])
        flat = log_probabilities[first : first + count].flatten(2).transpose(1, 2).flatten(0, 1)
        found = mean_field(flat, iterations, filters).unflatten(0, (count, -1))
        out[first : first + count] = found.transpose(1, 2).reshape(out[first : first + count].shape)

    for first in range(0, len(images), together):
        count = min(together, len(images) - first)
        try:
            refine(first, count)
        except ValueError:
            if count == 1:
                raise
            for single in range(first, first + count):  # of one image there are fewer points to number
                refine(single, 1)
    return out
