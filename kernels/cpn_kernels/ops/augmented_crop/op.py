"""The kernels of augmented crops as a custom operator, so that torch.compile passes through."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("cpn::augmented_crop", mutates_args=())
def augmented_crop_op(
    pixels: Tensor,
    weights: Tensor,
    crops: Tensor,
    amounts: Tensor,
    buffer: int,
    largest: list[int],
    side: int,
    fill: list[int],
) -> Tensor:
    """Crops uint8 [B, side, side, 3]; see `triton_kernel.augmented_crop`."""
    from cpn_kernels.ops.augmented_crop import triton_kernel

    return triton_kernel.augmented_crop(pixels, weights, crops, amounts, buffer, largest, side, fill)


@augmented_crop_op.register_fake
def _(
    pixels: Tensor,
    weights: Tensor,
    crops: Tensor,
    amounts: Tensor,
    buffer: int,
    largest: list[int],
    side: int,
    fill: list[int],
) -> Tensor:
    return pixels.new_empty(crops.shape[0], side, side, 3)
