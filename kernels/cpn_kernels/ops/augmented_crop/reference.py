"""Reference implementation of augmented crops, in plain torch: image by image, the whole resized image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cpn_kernels.ops.augmented_crop.packed import KINDS, MOST_STEPS, PRECISION

BY_LEVEL = float(np.float32(1) / np.float32(255))
BY_HUE = float(np.float32(6) * np.float32(BY_LEVEL))
"""OpenCV's scales of a saturation and of a hue, each rounded to float32."""

NAMES = {number: kind for kind, number in KINDS.items()}


def augmented_crop(
    pixels: Tensor, weights: Tensor, numbers: Tensor, amounts: Tensor, side: int, fill: tuple[int, int, int]
) -> Tensor:
    """Crops uint8 [B, side, side, 3]; see the public function."""
    device = pixels.device
    crops = torch.tensor(fill, dtype=torch.uint8, device=device).repeat(len(numbers), side, side, 1)
    pixel = weight = 0
    for crop, values, strengths in zip(crops, numbers.tolist(), amounts, strict=True):
        height, width, tall, broad, flip, top, left, row, column, rows, columns, down, across, *kinds = values
        image = pixels[pixel : pixel + 3 * height * width].view(height, width, 3)
        pixel += image.numel()
        parts = []
        for taps, scaled in ((down, tall), (across, broad)):
            parts.append(weights[weight : weight + (1 + taps) * scaled].view(1 + taps, scaled))
            weight += parts[-1].numel()
        # Across, then down, each rounded to a level: Pillow's order.
        resized = _resize(_resize(image.transpose(0, 1), parts[1]).transpose(0, 1), parts[0])
        if flip:
            resized = resized.flip(1)
        changed = _jitter(resized, kinds, strengths)
        crop[row : row + rows, column : column + columns] = changed[top : top + rows, left : left + columns]
    return crops


def _resize(image: Tensor, table: Tensor) -> Tensor:
    """uint8 [N, M, 3] -> uint8 [scaled, M, 3]."""
    first, weights = table[0].long(), table[1:]
    total = image.new_full((len(first), *image.shape[1:]), 1 << (PRECISION - 1), dtype=torch.int32)
    for tap, weight in enumerate(weights):
        # Behind the last pixel the weights are 0.
        total += image[(first + tap).clamp(max=len(image) - 1)].int() * weight[:, None, None]
    return (total >> PRECISION).clamp(0, 255).to(torch.uint8)


def _jitter(image: Tensor, kinds: list[int], amounts: Tensor) -> Tensor:
    for number in range(MOST_STEPS):
        kind, amount = NAMES.get(kinds[number]), amounts[number]
        if kind == "hue":
            image = turn_hue(image, amount)
        elif kind == "saturation":
            image = _blend(_grey(image)[..., None], image, amount)
        elif kind == "contrast":
            total, pixels = _grey(image).sum(), image.shape[0] * image.shape[1]
            image = _blend((total.double() / pixels + 0.5).int(), image, amount)
        elif kind == "brightness":
            image = _blend(image.new_zeros((), dtype=torch.int32), image, amount)
    return image


def _grey(image: Tensor) -> Tensor:
    """Pillow's grey of every pixel, int32."""
    red, green, blue = image.int().unbind(-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(base: Tensor, image: Tensor, amount: Tensor) -> Tensor:
    """Pillow's: from `base` at 0 to the level at 1 and beyond, in float32, cut off behind the point."""
    return (base.float() + amount * (image.int() - base).float()).clamp(0.0, 255.0).to(torch.uint8)


def turn_hue(image: Tensor, shift: Tensor) -> Tensor:
    """The hue turned by `shift` 256ths of the circle, as OpenCV's full conversion to HSV and back does.

    Args:
        image: uint8 [..., 3], RGB.
        shift: float32 [], 0 to 255.

    Returns:
        uint8 [..., 3].
    """
    red, green, blue = image.int().unbind(-1)
    value, spread = image.amax(-1).int(), (image.amax(-1) - image.amin(-1)).int()
    # OpenCV's tables of rounded quotients in 4096ths; none of them lies half-way.
    by_value = (2 * (255 << 12) + value) // (2 * value).clamp(min=1)
    by_spread = (2 * (256 << 12) + 6 * spread) // (12 * spread).clamp(min=1)
    saturation = (spread * by_value + 2048) >> 12
    green_or_blue = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = (torch.where(value == red, green - blue, green_or_blue) * by_spread + 2048) >> 12
    hue = torch.where(hue < 0, hue + 256, hue).clamp(max=255)
    return from_hsv((hue + shift.int()) & 255, saturation, value)


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """OpenCV's full conversion back: int32 [...] each, 0 to 255 -> uint8 [..., 3], RGB."""
    s, v = saturation.float() * BY_LEVEL, value.float()
    place = hue.float() * BY_HUE
    sector = place.int()
    rest = torch.where(sector >= 6, 0.0, place - sector.float())
    sector = torch.where(sector >= 6, 0, sector)
    # OpenCV's multiply-add rounds once: the product of two float32 fits into a float64.
    low, falling, rising = (
        v * (1 - s.double() * part.double()).float() for part in (torch.ones_like(s), rest, 1 - rest)
    )
    levels = [(part + 0.5).int() for part in (v, low, falling, rising)]
    # By sector, which of them red, green and blue are.
    orders = ((0, 2, 1, 1, 3, 0), (3, 0, 0, 2, 1, 1), (1, 1, 3, 0, 0, 2))
    stacked = torch.stack(levels)
    picked = []
    for order in orders:
        which = torch.tensor(order, device=hue.device)[sector.long()]
        picked.append(stacked.gather(0, which[None])[0])
    return torch.stack(picked, -1).to(torch.uint8)
