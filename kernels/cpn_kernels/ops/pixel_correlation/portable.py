"""Pixel correlation for ONNX: a loop over blocks whose count is data, so that one graph serves every image size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

BLOCK = 256


def pixel_correlation_portable(
    embedding: Tensor,
    maps: Tensor,
    eps: float = 1e-5,
    block: int = BLOCK,
    queries: Tensor | None = None,
    power: float = 1.0,
) -> Tensor:
    """The reference's sums, accumulated over blocks of source pixels i; exports to an ONNX `Loop` with dynamic B and N.

    Args:
        embedding: g, float [B, E, N].
        maps: float [B, C, N].
        eps: added to the sum of affinities.
        block: source pixels per iteration; memory is that of a [B, block, M] affinity.
        queries: float [B, E, M]; None = the embedding.
        power: exponent of the affinities.

    Returns:
        float [B, C, M]. Not differentiable: for inference.
    """
    pixels = embedding.shape[2]
    unit = F.normalize(embedding, dim=1)
    asked = unit if queries is None else F.normalize(queries, dim=1)
    # A block of zero vectors behind the last pixel lets every iteration take whole blocks: they have no affinity.
    sources = torch.cat([unit, unit.new_zeros(unit.shape[0], unit.shape[1], block)], dim=2)
    values = torch.cat([maps, maps.new_zeros(maps.shape[0], maps.shape[1], block)], dim=2)
    offsets = torch.arange(block, device=embedding.device)
    count = torch.zeros((), dtype=torch.int64, device=embedding.device) + pixels

    def more(start: Tensor, weighted: Tensor, total: Tensor) -> Tensor:
        return start < count

    def step(start: Tensor, weighted: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        columns = start + offsets
        affinity = (sources.index_select(2, columns).transpose(1, 2) @ asked).relu()
        if power != 1:
            affinity = affinity**power
        weighted = weighted + values.index_select(2, columns) @ affinity
        return start + block, weighted, total + affinity.sum(dim=1, keepdim=True)

    start = torch.zeros((), dtype=torch.int64, device=embedding.device)
    sums = maps.new_zeros(maps.shape[0], maps.shape[1], asked.shape[2])
    _, weighted, total = while_loop(more, step, (start, sums, torch.zeros_like(sums[:, :1])))
    return weighted / (total + eps)
