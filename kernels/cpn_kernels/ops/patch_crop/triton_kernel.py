"""Patch crops on a GPU in one launch: each program finds its rows and columns once and gathers their product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpn_kernels.backend import on_its_device
from cpn_kernels.ops.patch_crop.reference import NUMBERS

ROWS, COLUMNS = 16, 64
"""Pixels of one program."""

_NUMBERS = tl.constexpr(NUMBERS)


@triton.jit
def _shown(along, target, extent):
    offset = along - target
    return (offset >= 0) & (offset < extent)


@triton.jit
def _number(crops, place: tl.constexpr):
    return tl.load(crops + place).to(tl.int32)


@triton.jit
def crop_kernel(
    maps,  # int16 or int32, one map behind the other
    crops,  # int64 [B, NUMBERS]
    output,  # int32 [B, side, side]
    side,
    UNSIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of one crop. Divisions are of 32 bits: those of 64 are calls, for which a thread needs a stack."""
    image = tl.program_id(2).to(tl.int64)
    crops += image * _NUMBERS
    height, width = _number(crops, 1), _number(crops, 2)
    scaled_height, scaled_width, mirrored = _number(crops, 3), _number(crops, 4), _number(crops, 5)
    top, left = _number(crops, 8), _number(crops, 9)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    shown = _shown(row, top, _number(crops, 10))[:, None] & _shown(column, left, _number(crops, 11))[None, :]
    # Places of pixels that show no image may be negative; they are not read.
    y = _number(crops, 6) + row - top
    x = _number(crops, 7) + column - left
    x = tl.where(mirrored > 0, scaled_width - 1 - x, x)
    y = (2 * y + 1) * height // (2 * scaled_height)
    x = (2 * x + 1) * width // (2 * scaled_width)
    inside = (row < side)[:, None] & (column < side)[None, :]
    patch = tl.load(maps + tl.load(crops) + (y[:, None] * width + x[None, :]), mask=shown & inside, other=0).to(
        tl.int32
    )
    if UNSIGNED:
        patch = patch & 0xFFFF
    place = (image * side + row[:, None]) * side + column[None, :]
    tl.store(output + place, tl.where(shown, patch, -1), mask=inside)


@on_its_device
def patch_crop(maps: Tensor, crops: Tensor, side: int) -> Tensor:
    """Patches int32 [B, side, side]; see the public function, whose arguments are not empty."""
    batch = crops.shape[0]
    output = torch.empty(batch, side, side, dtype=torch.int32, device=maps.device)
    crop_kernel[(triton.cdiv(side, COLUMNS), triton.cdiv(side, ROWS), batch)](
        maps.contiguous(),
        crops.contiguous(),
        output,
        side,
        UNSIGNED=maps.dtype == torch.int16,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    return output
