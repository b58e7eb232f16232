"""The dense CRF's kernels as a custom operator, so that torch.compile passes through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("cpn::dense_crf", mutates_args=())
def dense_crf_op(
    images: Tensor,  # [B, H, W, 3]
    log_probabilities: Tensor,  # [B, C, H, W]
    iterations: int,
    gaussian: Sequence[float],
    bilateral: Sequence[float],
    gaussian_compat: float,
    bilateral_compat: float,
) -> Tensor:
    """Mean field of each image; see `launch.dense_crf`."""
    from cpn_kernels.ops.dense_crf import launch

    return launch.dense_crf(
        images, log_probabilities, iterations, gaussian, bilateral, gaussian_compat, bilateral_compat
    )


@dense_crf_op.register_fake
def _(
    images: Tensor,
    log_probabilities: Tensor,
    iterations: int,
    gaussian: Sequence[float],
    bilateral: Sequence[float],
    gaussian_compat: float,
    bilateral_compat: float,
) -> Tensor:
    del images, iterations, gaussian, bilateral, gaussian_compat, bilateral_compat
    return torch.empty_like(log_probabilities, memory_format=torch.contiguous_format)
