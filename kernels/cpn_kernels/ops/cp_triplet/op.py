"""The triplet kernel as a custom operator, so that torch.compile passes through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("cpn::cp_triplet", mutates_args=())
def cp_triplet_op(
    images: Tensor,
    patches: Tensor,
    keys: Tensor,
    threshold: int,
    mean: Tensor | None,
    mean_values: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Triplet and visible fraction; see `triton_kernel.triplet`."""
    from cpn_kernels.ops.cp_triplet import triton_kernel

    red, green, blue = mean_values
    return triton_kernel.triplet(images, patches, keys, threshold, mean, (red, green, blue), dtype, channels_last)


@cp_triplet_op.register_fake
def _(
    images: Tensor,
    patches: Tensor,
    keys: Tensor,
    threshold: int,
    mean: Tensor | None,
    mean_values: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = images.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    output = torch.empty(3 * batch, 3, height, width, dtype=dtype, device=images.device, memory_format=layout)
    return output, images.new_empty(batch, dtype=torch.float32)
