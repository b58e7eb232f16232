"""The kernel of patch crops as a custom operator, so that torch.compile passes through."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("cpn::patch_crop", mutates_args=())
def patch_crop_op(maps: Tensor, crops: Tensor, side: int) -> Tensor:
    """Patches int32 [B, side, side]; see `triton_kernel.patch_crop`."""
    from cpn_kernels.ops.patch_crop import triton_kernel

    return triton_kernel.patch_crop(maps, crops, side)


@patch_crop_op.register_fake
def _(maps: Tensor, crops: Tensor, side: int) -> Tensor:
    return maps.new_empty(crops.shape[0], side, side, dtype=torch.int32)
