"""Pixel correlation (PCM): every pixel's maps become the affinity-weighted mean of all pixels' maps."""

from __future__ import annotations

import torch
from torch import Tensor

from cpn_kernels.pixel_correlation import reference
from cpn_kernels.pixel_correlation.portable import pixel_correlation_portable

__all__ = ["pixel_correlation"]


def pixel_correlation(
    embedding: Tensor,  # [B, E, N]
    maps: Tensor,  # [B, C, N]
    eps: float = 1e-5,
) -> Tensor:
    """Refine maps by the affinity of pixels: Y[:, j] = sum_i maps[:, i] A_ij / (sum_i A_ij + eps).

    A_ij = relu(cos(g_i, g_j)): the embedding is L2-normalised over its channels in here (paper section 3.3, eq. 9 and
    10 as its text describes them, normalised per column).

    Args:
        embedding: g, float [B, E, N], one vector per pixel, of any length. A zero vector has no affinity.
        maps: float [B, C, N].
        eps: added to the sum of affinities.

    Returns:
        float [B, C, N]; half precision is computed and returned as float32 (matrix products follow autocast).
        Differentiable in both tensors; no N x N matrix is made for large N.

    Raises:
        ValueError: for shapes that do not match.
    """
    if embedding.ndim != 3 or maps.ndim != 3:
        raise ValueError(f"embedding {tuple(embedding.shape)}, maps {tuple(maps.shape)}; expected [B, E, N], [B, C, N]")
    dtype = torch.float64 if embedding.dtype == maps.dtype == torch.float64 else torch.float32
    embedding, maps = embedding.to(dtype), maps.to(dtype)
    if torch.compiler.is_exporting():
        return pixel_correlation_portable(embedding, maps, eps)
    if embedding.shape[0] != maps.shape[0] or embedding.shape[2] != maps.shape[2]:
        raise ValueError(f"embedding {tuple(embedding.shape)} and maps {tuple(maps.shape)} differ in B or N")
    if embedding.shape[2] <= reference.WHOLE:
        return reference.pixel_correlation(embedding, maps, eps)
    return reference.pixel_correlation_blocked(embedding, maps, eps)
