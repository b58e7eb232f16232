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
    """Refine maps by the affinity of pixels: Y[:, j] = sum_i maps[:, i] A_ij / (sum_i A_ij + eps), A = relu(g^T g).

    The affinity is relu of the dot product of the embedding as given: the caller L2-normalises g over its channels
    for the cosine that the paper describes (section 3.3, eq. 9 and 10, normalised per column).

    Args:
        embedding: g, float [B, E, N], one vector per pixel.
        maps: float [B, C, N], of the same dtype.
        eps: added to the sum of affinities.

    Returns:
        float [B, C, N]. Differentiable in both tensors; no N x N matrix is kept for large N.

    Raises:
        ValueError: for shapes that do not match.
    """
    if embedding.ndim != 3 or maps.ndim != 3:
        raise ValueError(f"embedding {tuple(embedding.shape)}, maps {tuple(maps.shape)}; expected [B, E, N], [B, C, N]")
    if torch.compiler.is_exporting():
        return pixel_correlation_portable(embedding, maps, eps)
    if embedding.shape[0] != maps.shape[0] or embedding.shape[2] != maps.shape[2]:
        raise ValueError(f"embedding {tuple(embedding.shape)} and maps {tuple(maps.shape)} differ in B or N")
    if embedding.shape[2] <= reference.BLOCK:
        return reference.pixel_correlation(embedding, maps, eps)
    return reference.pixel_correlation_blocked(embedding, maps, eps)
