"""Patches of training crops, taken from stored superpixel maps: nearest neighbour, mirrored, cut and padded."""

from __future__ import annotations

import torch
from torch import Tensor

from cpn_kernels.backend import use_triton
from cpn_kernels.ops.patch_crop import reference
from cpn_kernels.ops.patch_crop.op import patch_crop_op
from cpn_kernels.ops.patch_crop.reference import NUMBERS

__all__ = ["LARGEST", "NUMBERS", "patch_crop"]

LARGEST = 2**31
"""Bound of the kernel's numbers of 32 bits."""


def patch_crop(maps: Tensor, crops: Tensor, side: int) -> Tensor:
    """Take a batch of crops out of maps that lie one behind the other in memory.

    Pixel (y, x) of a crop whose image lies at `target` with `extent` shows, of the image scaled to `scaled`, pixel
    `source` + (y, x) - `target` (its column counted from the right where it is mirrored), hence pixel
    floor((2 place + 1) size / (2 scaled)) of its map along each axis; -1 where the crop shows no image.

    Args:
        maps: int16 (whose bits are taken for uint16) or int32 [any length].
        crops: int64 [B, 12], on the maps' device: where the map begins; its height and width; those of the scaled
            image, >= 1; 1 = mirrored; source row and column; target row and column; extent in rows and columns. On a
            GPU 2 size scaled must be below 2**31 along each axis (`LARGEST`), which is not checked: it would wait.
        side: of the crops in pixels, >= 1.

    Returns:
        int32 [B, side, side].

    Raises:
        ValueError: for another shape, dtype or device, or a side below 1.
    """
    if maps.ndim != 1 or maps.dtype not in (torch.int16, torch.int32):
        raise ValueError(f"maps are {maps.dtype} {tuple(maps.shape)}; expected int16 or int32 with one dimension")
    if crops.ndim != 2 or crops.shape[1] != NUMBERS or crops.dtype != torch.int64 or crops.device != maps.device:
        raise ValueError(
            f"crops are {crops.dtype} {tuple(crops.shape)} on {crops.device}; expected int64 [B, {NUMBERS}] on "
            f"{maps.device}"
        )
    if side < 1:
        raise ValueError(f"side is {side}; expected at least 1 pixel")
    if use_triton(maps, crops):
        return patch_crop_op(maps, crops, side)
    return reference.patch_crop(maps, crops, side)
