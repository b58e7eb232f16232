"""Reference implementation of the dense CRF, in plain torch.

The Gaussian filters are those of the permutohedral lattice (Adams, Baek and Davis 2010), an approximation:
they are the lattice's here, as in the published implementation of Kraehenbuehl and Koltun (2011), not the exact filter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

LARGEST_KEY = 2.0**53


def features(image: Tensor, deviations: Sequence[float]) -> Tensor:
    """x and y, and with five standard deviations red, green and blue, each over its own; float64 [H * W, 2 or 5]."""
    height, width, _ = image.shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=image.device),
        torch.arange(width, dtype=torch.float64, device=image.device),
        indexing="ij",
    )
    columns = [x.flatten(), y.flatten(), *image.reshape(-1, 3).double().unbind(1)][: len(deviations)]
    # As a product with the reciprocal, so that every backend rounds alike.
    return torch.stack([column * (1 / deviation) for column, deviation in zip(columns, deviations, strict=True)], 1)


class Lattice:
    """Gaussian filter of standard deviation 1 over the features of n pixels, with symmetric normalisation.

    Attributes:
        points: int64 [n, D + 1], the lattice points at the corners of each pixel's simplex, in 0..m-1.
        weights: float64 [n, D + 1], barycentric; they sum to 1.
        neighbours: int64 [D + 1, m, 2], one step forth and back along each axis; m where no such point is.

    Args:
        features: float64 [n, D].
        images: of which they are, the same number of pixels of each, one image behind the other; no point has pixels of
            two of them, and each image's points are numbered as if it were alone.

    Raises:
        ValueError: where the features span too many lattice points to number.
    """

    def __init__(self, features: Tensor, images: int = 1) -> None:
        nearest, rank, difference = self._simplices(features)
        corners = features.shape[1] + 1
        ordered = torch.empty_like(difference).scatter_(1, rank, difference)
        gaps = (ordered[:, :-1] - ordered[:, 1:]).flip(1)
        self.weights = torch.cat([1 + (ordered[:, -1:] - ordered[:, :1]) / corners, gaps / corners], 1)
        remainder = torch.arange(corners, device=features.device)[:, None]
        # Corner k lies k further in all coordinates, but for the k foremost, which go D + 1 back.
        points = nearest[:, None] + remainder - corners * (rank[:, None] > corners - 1 - remainder)
        self._number(points, images)

    @cached_property
    def norm(self) -> Tensor:
        """float64 [n], 1 / sqrt of what the filter makes of ones."""
        return self(self.weights.new_ones(len(self.weights), 1))[:, 0].rsqrt()

    @staticmethod
    def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest point of remainder 0, int64; rank of each coordinate by its distance from it; that distance."""
        dimensions = features.shape[1]
        corners = dimensions + 1
        elevated = [torch.zeros_like(features[:, 0])]
        for axis in range(dimensions, 0, -1):
            scale = corners * math.sqrt(2 / 3) / math.sqrt(axis * (axis + 1))
            scaled = features[:, axis - 1] * scale
            elevated.insert(1, elevated[0] - axis * scaled)
            elevated[0] = elevated[0] + scaled
        position = torch.stack(elevated, 1)
        rounded = (position / corners).round()
        difference = position - rounded * corners
        order = difference.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1) + rounded.sum(1, keepdim=True).long()
        # Where the rounded coordinates do not sum to 0, those that were rounded furthest go one further back.
        shift = corners * ((rank < 0).long() - (rank >= corners).long())
        return (rounded * corners).long() + shift, rank + shift, difference - shift

    def _number(self, points: Tensor, images: int) -> None:
        """Number the points of int64 [n, D + 1, D + 1] coordinates, and find the neighbours of each."""
        corners = points.shape[2]
        coordinates = points[..., 1:]  # the first follows: they sum to 0
        coordinates = coordinates - coordinates.amin((0, 1)) + corners
        spans = (coordinates.amax((0, 1)) + corners + 1).tolist()
        strides = [math.prod(spans[i + 1 :]) for i in range(len(spans))]
        if math.prod(spans) * images >= LARGEST_KEY:
            raise ValueError("the standard deviations are too small for an image of this size")
        stride = torch.tensor(strides, device=points.device)
        # A step to a neighbour stays among its image's keys: each span has room for it at both ends.
        first = math.prod(spans) * torch.arange(images, device=points.device)
        every = (coordinates * stride).sum(-1).unflatten(0, (images, -1)) + first[:, None, None]
        keys, inverse = every.flatten(0, 1).unique(return_inverse=True)
        self.points = inverse
        found = []
        for axis in range(corners):  # a step is -1 in all coordinates, and D + 1 more in one
            step = (corners * strides[axis - 1] if axis else 0) - sum(strides)
            wanted = torch.stack([keys + step, keys - step], 1)
            place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            found.append(torch.where(keys[place] == wanted, place, len(keys)))
        self.neighbours = torch.stack(found)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter [n, C]: splat, blur with (1/2, 1, 1/2) along each axis in turn, slice; without normalisation."""
        weights = self.weights.to(values.dtype)
        held = values.new_zeros(
            self.neighbours.shape[1] + 1, values.shape[1]
        )  # the last row: points that are not there
        for corner in range(weights.shape[1]):
            held.index_add_(0, self.points[:, corner], values * weights[:, corner, None])
        for pair in self.neighbours:
            blurred = held[:-1] + 0.5 * (held[pair[:, 0]] + held[pair[:, 1]])
            held = torch.cat([blurred, held[-1:]])
        gathered = torch.zeros_like(values)
        for corner in range(weights.shape[1]):
            gathered += held[self.points[:, corner]] * weights[:, corner, None]
        return gathered

    def normalised(self, values: Tensor) -> Tensor:
        """Filter [n, C] with what it makes of ones divided out, half before and half after."""
        norm = self.norm.to(values.dtype)[:, None]
        return norm * self(norm * values)


def mean_field(log_probabilities: Tensor, iterations: int, kernels: Sequence[tuple[Lattice, float]]) -> Tensor:
    """Mean field of one image with the Potts model (Kraehenbuehl and Koltun, algorithm 1).

    Args:
        log_probabilities: minus the unary energy, [n, C].
        iterations: >= 0.
        kernels: filters and their weights.

    Returns:
        Probabilities [n, C].
    """
    q = log_probabilities.softmax(1)
    for _ in range(iterations):
        energy = log_probabilities
        for lattice, compat in kernels:
            energy = energy + compat * lattice.normalised(q)
        q = energy.softmax(1)
    return q


def dense_crf(
    images: Tensor,
    log_probabilities: Tensor,
    iterations: int,
    gaussian: Sequence[float],
    bilateral: Sequence[float],
    gaussian_compat: float,
    bilateral_compat: float,
) -> Tensor:
    """Mean field of each image, in the dtype of the probabilities; arguments as in `native.dense_crf`."""
    out = torch.empty_like(log_probabilities)
    pairs = ((gaussian, gaussian_compat), (bilateral, bilateral_compat))
    for index, image in enumerate(images):
        kernels = [(Lattice(features(image, deviations)), compat) for deviations, compat in pairs if compat]
        flat = log_probabilities[index].flatten(1).T
        out[index] = mean_field(flat, iterations, kernels).T.reshape(out[index].shape)
    return out
