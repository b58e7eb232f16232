"""Plain torch forms of the pixel correlation: the N x N law, and the same sums block by block."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
"""Pixels per block: an affinity block of 256 x N stays near the cache, and memory grows with N, not its square."""


def pixel_correlation(embedding: Tensor, maps: Tensor, eps: float = 1e-5) -> Tensor:
    """The law, with the whole affinity matrix; see the public function."""
    affinity = (embedding.transpose(1, 2) @ embedding).relu()
    return maps @ affinity / (affinity.sum(dim=1, keepdim=True) + eps)


class _Blocked(torch.autograd.Function):
    """Column blocks of the affinity, recomputed in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx, embedding: Tensor, maps: Tensor, eps: float, block: int) -> Tensor:  # type: ignore[no-untyped-def]
        outputs, sums = [], []
        for queries in embedding.split(block, dim=2):
            affinity = (embedding.transpose(1, 2) @ queries).relu()
            total = affinity.sum(dim=1, keepdim=True) + eps
            outputs.append(maps @ affinity / total)
            sums.append(total)
        output = torch.cat(outputs, dim=2)
        ctx.save_for_backward(embedding, maps, output, torch.cat(sums, dim=2))
        ctx.block = block
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[no-untyped-def]
        embedding, maps, output, sums = ctx.saved_tensors
        scaled = gradient / sums
        # d(affinity_ij) = maps_i . scaled_j - output_j . scaled_j
        offset = (scaled * output).sum(dim=1, keepdim=True)
        as_key = torch.zeros_like(embedding)
        map_gradient = torch.zeros_like(maps)
        as_query = []
        for start in range(0, embedding.shape[2], ctx.block):
            columns = slice(start, start + ctx.block)
            queries = embedding[:, :, columns]
            affinity = (embedding.transpose(1, 2) @ queries).relu()
            map_gradient += scaled[:, :, columns] @ affinity.transpose(1, 2)
            score_gradient = maps.transpose(1, 2) @ scaled[:, :, columns] - offset[:, :, columns]
            score_gradient = torch.where(affinity > 0, score_gradient, torch.zeros_like(score_gradient))
            as_query.append(embedding @ score_gradient)
            as_key += queries @ score_gradient.transpose(1, 2)
        return as_key + torch.cat(as_query, dim=2), map_gradient, None, None


def pixel_correlation_blocked(embedding: Tensor, maps: Tensor, eps: float = 1e-5, block: int = BLOCK) -> Tensor:
    """The same sums over column blocks: memory of a block of N, forward and backward."""
    return _Blocked.apply(embedding, maps, eps, block)
