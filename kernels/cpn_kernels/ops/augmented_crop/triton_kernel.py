"""Augmented crops on a GPU in three launches: across, then down with the colours, then what waits for the mean grey.

An image's rows are resized across into a buffer of levels, which stays in the L2 cache; from it every pixel of the
resized image is made, for its grey counts in the mean that a contrast moves away from, but only those of the crop are
kept. Where an image has no contrast the last launch fills its padding alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpn_kernels.backend import on_its_device
from cpn_kernels.ops.augmented_crop.packed import KINDS, MOST_STEPS, NUMBERS, PRECISION
from cpn_kernels.ops.augmented_crop.reference import BY_HUE, BY_LEVEL

ROWS, COLUMNS = 8, 64
"""Pixels of one program."""

ROW = NUMBERS + 4
"""Numbers of a crop as the kernels read them: also where its pixels, its weights down and across, and its buffer begin;
these, of 64 bits, come first."""

UNFUSED = {"enable_fp_fusion": False}
"""A multiply-add rounds once where Pillow rounds twice."""

_ROW, _BEGINS = tl.constexpr(ROW), tl.constexpr(4)
_PRECISION, _HALF = tl.constexpr(PRECISION), tl.constexpr(1 << (PRECISION - 1))
_STEPS = tl.constexpr(MOST_STEPS)
_BY_LEVEL, _BY_HUE = tl.constexpr(BY_LEVEL), tl.constexpr(BY_HUE)
_CONTRAST, _SATURATION, _HUE = (tl.constexpr(KINDS[kind]) for kind in ("contrast", "saturation", "hue"))


@triton.jit
def _number(crops, place: tl.constexpr):
    return tl.load(crops + _BEGINS + place).to(tl.int32)


@triton.jit
def _level(total):
    return tl.minimum(tl.maximum(total >> _PRECISION, 0), 255)


@triton.jit
def _grey(red, green, blue):
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@triton.jit
def _blend(base, level, amount):
    value = base.to(tl.float32) + amount * (level - base).to(tl.float32)
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)


@triton.jit
def _part(value, saturation, share):
    """A level of OpenCV's, whose multiply-add rounds once: the product of two float32 fits into a float64."""
    left = (1.0 - saturation.to(tl.float64) * share.to(tl.float64)).to(tl.float32)
    return (value * left + 0.5).to(tl.int32)


@triton.jit
def _turned(red, green, blue, shift):
    """OpenCV's full conversion to HSV, the hue turned, and back."""
    value = tl.maximum(tl.maximum(red, green), blue)
    spread = value - tl.minimum(tl.minimum(red, green), blue)
    by_value = (2 * (255 << 12) + value) // tl.maximum(2 * value, 1)
    by_spread = (2 * (256 << 12) + 6 * spread) // tl.maximum(12 * spread, 1)
    saturation = (spread * by_value + 2048) >> 12
    hue = tl.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = (tl.where(value == red, green - blue, hue) * by_spread + 2048) >> 12
    hue = tl.minimum(tl.where(hue < 0, hue + 256, hue), 255)
    hue = (hue + shift) & 255
    s = saturation.to(tl.float32) * _BY_LEVEL
    v = value.to(tl.float32)
    place = hue.to(tl.float32) * _BY_HUE
    sector = place.to(tl.int32)
    rest = tl.where(sector >= 6, 0.0, place - sector.to(tl.float32))
    sector = tl.where(sector >= 6, 0, sector)
    low, falling, rising = _part(v, s, tl.full(v.shape, 1.0, tl.float32)), _part(v, s, rest), _part(v, s, 1.0 - rest)
    first, last = (sector == 0) | (sector == 5), (sector == 2) | (sector == 3)
    red = tl.where(first, value, tl.where(sector == 1, falling, tl.where(last, low, rising)))
    green = tl.where(sector == 0, rising, tl.where(sector <= 2, value, tl.where(sector == 3, falling, low)))
    blue = tl.where(sector <= 1, low, tl.where(sector == 2, rising, tl.where(sector <= 4, value, falling)))
    return red, green, blue


@triton.jit
def _changed(kind, amount, mean, red, green, blue):
    if kind == _HUE:
        red, green, blue = _turned(red, green, blue, amount.to(tl.int32))
    elif kind == _SATURATION:
        grey = _grey(red, green, blue)
        red, green, blue = _blend(grey, red, amount), _blend(grey, green, amount), _blend(grey, blue, amount)
    elif kind >= 0:
        base = tl.where(kind == _CONTRAST, mean, 0)
        red, green, blue = _blend(base, red, amount), _blend(base, green, amount), _blend(base, blue, amount)
    return red, green, blue


@triton.jit
def _contrast_at(crops):
    """Place of the contrast among the steps; their number where there is none."""
    place = tl.full((), _STEPS, tl.int32)
    for step in tl.static_range(_STEPS):
        place = tl.where(_number(crops, 13 + step) == _CONTRAST, step, place)
    return place


@triton.jit
def across_kernel(
    pixels,  # uint8, one image [H, W, 3] behind the other
    weights,  # int32, tables one behind the other
    crops,  # int64 [B, ROW]
    buffer,  # uint8, planes [3, H, scaled width] of one image behind the other's
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of the source's rows, resized across."""
    crops += tl.program_id(2).to(tl.int64) * _ROW
    height, width, scaled, taps = _number(crops, 0), _number(crops, 1), _number(crops, 3), _number(crops, 12)
    pixels, table, buffer = pixels + tl.load(crops), weights + tl.load(crops + 2), buffer + tl.load(crops + 3)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < height)[:, None] & (column < scaled)[None, :]
    first = tl.load(table + column, mask=column < scaled, other=0)
    red = tl.full((ROWS, COLUMNS), _HALF, tl.int32)
    green, blue = red, red
    for tap in range(taps):
        weight = tl.load(table + (tap + 1) * scaled + column, mask=column < scaled, other=0)[None, :]
        # Behind the last pixel the weights are 0.
        at = tl.minimum(first + tap, width - 1)
        place = pixels + (row[:, None] * width + at[None, :]) * 3
        red += tl.load(place, mask=inside, other=0).to(tl.int32) * weight
        green += tl.load(place + 1, mask=inside, other=0).to(tl.int32) * weight
        blue += tl.load(place + 2, mask=inside, other=0).to(tl.int32) * weight
    place, plane = buffer + row[:, None] * scaled + column[None, :], height * scaled
    tl.store(place, _level(red).to(tl.uint8), mask=inside)
    tl.store(place + plane, _level(green).to(tl.uint8), mask=inside)
    tl.store(place + 2 * plane, _level(blue).to(tl.uint8), mask=inside)


@triton.jit
def down_kernel(
    weights,  # int32, tables one behind the other
    crops,  # int64 [B, ROW]
    amounts,  # float32 [B, 4]
    buffer,  # uint8, planes [3, H, scaled width] of one image behind the other's
    totals,  # int64 [B], 0: the greys of each image's pixels
    output,  # uint8 [B, side, side, 3]
    side,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of the resized image with the steps before a contrast."""
    image = tl.program_id(2).to(tl.int64)
    crops += image * _ROW
    height, scaled_height, scaled_width = _number(crops, 0), _number(crops, 2), _number(crops, 3)
    table, buffer = weights + tl.load(crops + 1), buffer + tl.load(crops + 3)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < scaled_height)[:, None] & (column < scaled_width)[None, :]
    first = tl.load(table + row, mask=row < scaled_height, other=0)
    plane = height * scaled_width
    red = tl.full((ROWS, COLUMNS), _HALF, tl.int32)
    green, blue = red, red
    for tap in range(_number(crops, 11)):
        weight = tl.load(table + (tap + 1) * scaled_height + row, mask=row < scaled_height, other=0)[:, None]
        at = tl.minimum(first + tap, height - 1)
        place = buffer + at[:, None] * scaled_width + column[None, :]
        red += tl.load(place, mask=inside, other=0).to(tl.int32) * weight
        green += tl.load(place + plane, mask=inside, other=0).to(tl.int32) * weight
        blue += tl.load(place + 2 * plane, mask=inside, other=0).to(tl.int32) * weight
    red, green, blue = _level(red), _level(green), _level(blue)
    contrast = _contrast_at(crops)
    for step in tl.static_range(_STEPS):
        if step < contrast:
            amount = tl.load(amounts + image * _STEPS + step)
            red, green, blue = _changed(_number(crops, 13 + step), amount, 0, red, green, blue)
    if contrast < _STEPS:
        # The greys of an image are counted as whole numbers, in whichever order its tiles come.
        grey = tl.sum(tl.where(inside, _grey(red, green, blue), 0))
        tl.atomic_add(totals + image, grey.to(tl.int64))
    y, x = row - _number(crops, 5), tl.where(_number(crops, 4) > 0, scaled_width - 1 - column, column)
    x = x - _number(crops, 6)
    shown = ((y >= 0) & (y < _number(crops, 9)))[:, None] & ((x >= 0) & (x < _number(crops, 10)))[None, :] & inside
    y, x = y + _number(crops, 7), x + _number(crops, 8)
    place = output + ((image * side + y[:, None]) * side + x[None, :]) * 3
    tl.store(place, red.to(tl.uint8), mask=shown)
    tl.store(place + 1, green.to(tl.uint8), mask=shown)
    tl.store(place + 2, blue.to(tl.uint8), mask=shown)


@triton.jit
def finish_kernel(
    crops,  # int64 [B, ROW]
    amounts,  # float32 [B, 4]
    totals,  # int64 [B]
    output,  # uint8 [B, side, side, 3]
    side,
    fill_red,
    fill_green,
    fill_blue,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of the crop: the contrast and the steps behind it, and the padding."""
    image = tl.program_id(2).to(tl.int64)
    crops += image * _ROW
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < side)[:, None] & (column < side)[None, :]
    y, x = row - _number(crops, 7), column - _number(crops, 8)
    shown = ((y >= 0) & (y < _number(crops, 9)))[:, None] & ((x >= 0) & (x < _number(crops, 10)))[None, :] & inside
    place = output + ((image * side + row[:, None]) * side + column[None, :]) * 3
    red = tl.load(place, mask=shown, other=0).to(tl.int32)
    green = tl.load(place + 1, mask=shown, other=0).to(tl.int32)
    blue = tl.load(place + 2, mask=shown, other=0).to(tl.int32)
    pixels = _number(crops, 2).to(tl.float64) * _number(crops, 3).to(tl.float64)
    mean = (tl.load(totals + image).to(tl.float64) / pixels + 0.5).to(tl.int32)
    contrast = _contrast_at(crops)
    for step in tl.static_range(_STEPS):
        if step >= contrast:
            amount = tl.load(amounts + image * _STEPS + step)
            red, green, blue = _changed(_number(crops, 13 + step), amount, mean, red, green, blue)
    tl.store(place, tl.where(shown, red, fill_red).to(tl.uint8), mask=inside)
    tl.store(place + 1, tl.where(shown, green, fill_green).to(tl.uint8), mask=inside)
    tl.store(place + 2, tl.where(shown, blue, fill_blue).to(tl.uint8), mask=inside)


def _grid(columns: int, rows: int, batch: int) -> tuple[int, int, int]:
    return triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS), batch


@on_its_device
def augmented_crop(
    pixels: Tensor,
    weights: Tensor,
    crops: Tensor,
    amounts: Tensor,
    buffer: int,
    largest: list[int],
    side: int,
    fill: list[int],
) -> Tensor:
    """Crops uint8 [B, side, side, 3]; see the public function.

    Args:
        pixels: uint8, not empty.
        weights: int32.
        crops: int64 [B, ROW].
        amounts: float32 [B, 4].
        buffer: bytes that the images resized across take.
        largest: height of the images; height and width of the resized ones.
        side: of the crops.
        fill: of their padding.
    """
    batch = crops.shape[0]
    narrow = torch.empty(buffer, dtype=torch.uint8, device=pixels.device)
    totals = torch.zeros(batch, dtype=torch.int64, device=pixels.device)
    output = torch.empty(batch, side, side, 3, dtype=torch.uint8, device=pixels.device)
    tile = {"ROWS": ROWS, "COLUMNS": COLUMNS} | UNFUSED
    height, scaled_height, scaled_width = largest
    across_kernel[_grid(scaled_width, height, batch)](pixels, weights, crops, narrow, **tile)
    down_kernel[_grid(scaled_width, scaled_height, batch)](
        weights, crops, amounts, narrow, totals, output, side, **tile
    )
    finish_kernel[_grid(side, side, batch)](crops, amounts, totals, output, side, *fill, **tile)
    return output
