"""Pixel correlation (PCM): every pixel's maps become the affinity-weighted mean of all pixels' maps."""

from __future__ import annotations

import torch
from torch import Tensor

from cpn_kernels.backend import exporting, use_triton
from cpn_kernels.ops.pixel_correlation import reference
from cpn_kernels.ops.pixel_correlation.op import is_supported, pixel_correlation_op
from cpn_kernels.ops.pixel_correlation.portable import pixel_correlation_portable

__all__ = ["pixel_correlation"]


def pixel_correlation(
    embedding: Tensor,  # [B, E, N]
    maps: Tensor,  # [B, C, N]
    eps: float = 1e-5,
    queries: Tensor | None = None,  # [B, E, M]
    power: float = 1.0,
) -> Tensor:
    """Refine maps by the affinity of pixels: Y[:, j] = sum_i maps[:, i] A_ij / (sum_i A_ij + eps).

    A_ij = relu(cos(g_i, g_j)) ** power: the embedding is L2-normalised over its channels in here (paper section 3.3,
    eq. 9 and 10 as its text describes them, normalised per column).

    Args:
        embedding: g, float [B, E, N], one vector per pixel, of any length. A zero vector has no affinity.
        maps: float [B, C, N].
        eps: added to the sum of affinities.
        queries: float [B, E, M], vectors of the positions j where they are not those of `embedding`.
        power: exponent of the affinities, above 0. Any but 1 is computed by the reference on every device.

    Returns:
        float [B, C, N], or [B, C, M] for M queries; half precision is returned as float32. Differentiable in all
        tensors; no N x N matrix is made for large N. On the CPU half precision is computed as float32, and matrix
        products follow autocast. A GPU's kernel multiplies half-precision embeddings, and all under autocast, as
        bfloat16, the others as float32 (tf32 where `torch.set_float32_matmul_precision` allows it), with float32 sums.

    Raises:
        ValueError: for shapes that do not match, or a power that is not above 0.
    """
    if embedding.ndim != 3 or maps.ndim != 3:
        raise ValueError(f"embedding {tuple(embedding.shape)}, maps {tuple(maps.shape)}; expected [B, E, N], [B, C, N]")
    if queries is not None and (queries.ndim != 3 or queries.shape[:2] != embedding.shape[:2]):
        raise ValueError(
            f"queries are {tuple(queries.shape)}; expected [B, E, M] as embedding {tuple(embedding.shape)}"
        )
    if not power > 0:
        raise ValueError(f"power is {power}; expected a number above 0")
    if exporting():
        return pixel_correlation_portable(*_widened(embedding, maps), eps, queries=queries, power=power)
    if embedding.shape[0] != maps.shape[0] or embedding.shape[2] != maps.shape[2]:
        raise ValueError(f"embedding {tuple(embedding.shape)} and maps {tuple(maps.shape)} differ in B or N")
    halved = embedding.dtype != torch.float32 or torch.is_autocast_enabled(embedding.device.type)
    precision = "bf16" if halved else "fp32"
    if (
        power == 1
        and use_triton(embedding, maps, queries)
        and is_supported(embedding.shape[1], maps.shape[1], precision)
    ):
        return pixel_correlation_op(embedding, queries, maps, eps, precision)[0]
    embedding, maps = _widened(embedding, maps)
    if queries is not None:
        return reference.pixel_correlation_queried(embedding, maps, eps, queries.to(embedding.dtype), power)
    if embedding.shape[2] <= reference.WHOLE:
        return reference.pixel_correlation(embedding, maps, eps, power=power)
    if power != 1:
        return reference.pixel_correlation_queried(embedding, maps, eps, embedding, power)
    return reference.pixel_correlation_blocked(embedding, maps, eps)


def _widened(embedding: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or float64 where both are."""
    dtype = torch.float64 if embedding.dtype == maps.dtype == torch.float64 else torch.float32
    return embedding.to(dtype), maps.to(dtype)
