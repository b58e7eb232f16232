"""Reference implementation of the pixel correlation in plain torch: with the N x N matrix, and block by block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 256
"""Pixels per block: memory is that of a [B, N, 256] affinity and grows with N, not with its square."""

WHOLE = 1024
"""Up to this many pixels the whole matrix is small, and keeping it is faster than computing it again."""


def pixel_correlation(
    embedding: Tensor, maps: Tensor, eps: float = 1e-5, queries: Tensor | None = None, power: float = 1.0
) -> Tensor:
    """With the whole affinity matrix; see the public function."""
    unit = F.normalize(embedding, dim=1)
    asked = unit if queries is None else F.normalize(queries, dim=1)
    affinity = raised((unit.transpose(1, 2) @ asked).relu(), power)
    return maps @ affinity / (affinity.sum(dim=1, keepdim=True, dtype=maps.dtype) + eps)


def raised(affinity: Tensor, power: float) -> Tensor:
    """Affinities >= 0 to a power above 0, with gradient 0 at 0 also where that of the power is infinite."""
    if power == 1:
        return affinity
    positive = affinity > 0
    return torch.where(positive, torch.where(positive, affinity, 1.0) ** power, 0.0)


class _Blocked(torch.autograd.Function):
    """Column blocks of the affinity, recomputed in the backward pass instead of kept; takes unit vectors."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, maps: Tensor, eps: float, block: int) -> Tensor:
        # Results are written in place: kept blocks between freed ones would leave holes in the allocator's heap.
        output, totals = torch.empty_like(maps), torch.empty_like(maps[:, :1])
        for start in range(0, unit.shape[2], block):
            columns = slice(start, start + block)
            affinity = (unit.transpose(1, 2) @ unit[:, :, columns]).relu_()
            total = affinity.sum(dim=1, keepdim=True, dtype=maps.dtype) + eps
            output[:, :, columns] = maps @ affinity / total
            totals[:, :, columns] = total
            del affinity  # before the next block is made
        ctx.save_for_backward(unit, maps, output, totals)
        ctx.block = block
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        unit, maps, output, totals = ctx.saved_tensors
        scaled = gradients[0] / totals
        # dL/dA_ij = maps_i . scaled_j - offset_j. A is symmetric, so g_j receives g_i (dA_ij + dA_ji) in one product,
        # and that sum is itself one product of these stacks.
        offset = (scaled * output).sum(dim=1, keepdim=True)
        ones = torch.ones_like(offset)
        left = torch.cat([maps, scaled, offset, ones], dim=1).transpose(1, 2)
        right = torch.cat([scaled, maps, -ones, -offset], dim=1)
        unit_gradient = torch.empty_like(unit) if ctx.needs_input_grad[0] else None
        map_gradient = torch.empty_like(maps) if ctx.needs_input_grad[1] else None
        for start in range(0, unit.shape[2], ctx.block):
            columns = slice(start, start + ctx.block)
            affinity = (unit.transpose(1, 2) @ unit[:, :, columns]).relu_()
            if map_gradient is not None:
                map_gradient[:, :, columns] = scaled @ affinity
            if unit_gradient is not None:
                both = (left @ right[:, :, columns]).masked_fill_(affinity <= 0, 0)
                unit_gradient[:, :, columns] = unit @ both
                del both
            del affinity
        return unit_gradient, map_gradient, None, None


def pixel_correlation_blocked(embedding: Tensor, maps: Tensor, eps: float = 1e-5, block: int = BLOCK) -> Tensor:
    """The same sums over column blocks: memory of a block of N, forward and backward."""
    return _Blocked.apply(F.normalize(embedding, dim=1), maps, eps, block)


def pixel_correlation_queried(
    embedding: Tensor, maps: Tensor, eps: float, queries: Tensor, power: float = 1.0
) -> Tensor:
    """For queries that are no keys, block by block; a block's affinity is computed again in the backward."""
    parts = [
        checkpoint(pixel_correlation, embedding, maps, eps, part, power, use_reentrant=False)
        for part in queries.split(BLOCK, dim=2)
    ]
    return torch.cat(parts, dim=2)
