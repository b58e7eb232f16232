"""Training crops of images as they are: resized, mirrored, cut, their colours changed, where the images lie."""

from __future__ import annotations

import torch
from torch import Tensor

from cpn_kernels.backend import use_triton
from cpn_kernels.ops.augmented_crop import reference
from cpn_kernels.ops.augmented_crop.op import augmented_crop_op
from cpn_kernels.ops.augmented_crop.packed import MOST_STEPS, NUMBERS, Packed, pack

__all__ = ["NUMBERS", "Packed", "augmented_crop", "pack"]


def augmented_crop(
    pixels: Tensor, weights: Tensor, numbers: Tensor, amounts: Tensor, side: int, fill: tuple[int, int, int]
) -> Tensor:
    """Make a batch of crops, each as `pack` was told: resize (Pillow's cubic), mirror, change the colours, cut.

    The result is that of `cpn_fast.data.loading.jitter.jittered_crop` bit by bit, on every device: levels are whole
    numbers, the weights come from the host, and the conversion of the hue rounds as OpenCV's on the CPU does.

    Args:
        pixels: uint8 [N], the images one behind the other.
        weights: int32 [M] on the same device, their weights likewise.
        numbers: int64 [B, NUMBERS], on the CPU: the host knows every size, and waits for nothing.
        amounts: float32 [B, 4] on the pixels' device.
        side: of the crops in pixels, >= 1; what `pack` was told of their size.
        fill: colour where a crop shows no image, RGB in 0..255.

    Returns:
        uint8 [B, side, side, 3].

    Raises:
        ValueError: for another shape, dtype or device, numbers that ask for more pixels or weights than there are, a
            side below 1, or a colour outside of 0..255.
    """
    _check(pixels, weights, numbers, amounts, side, fill)
    if not use_triton(pixels, weights, amounts):
        return reference.augmented_crop(pixels, weights, numbers, amounts, side, fill)
    rows, buffer = _rows(numbers)
    crops = (rows.pin_memory() if pixels.is_cuda else rows).to(pixels.device, non_blocking=True)
    largest = numbers[:, [0, 2, 3]].amax(0).tolist()
    return augmented_crop_op(
        pixels.contiguous(), weights.contiguous(), crops, amounts.contiguous(), buffer, largest, side, list(fill)
    )


def _lengths(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of each crop's pixels, of its weights down and of those across, int64 [B]."""
    height, width, tall, broad = numbers[:, :4].unbind(1)
    down, across = numbers[:, 11:13].unbind(1)
    return 3 * height * width, (1 + down) * tall, (1 + across) * broad


def _rows(numbers: Tensor) -> tuple[Tensor, int]:
    """The numbers with where each crop's pixels, weights down and across, and buffer begin; the buffer's length."""
    pixels, down, across = _lengths(numbers)
    narrow = 3 * numbers[:, 0] * numbers[:, 3]
    both = down + across
    begin = both.cumsum(0) - both
    begins = (pixels.cumsum(0) - pixels, begin, begin + down, narrow.cumsum(0) - narrow)
    return torch.cat([torch.stack(begins, 1), numbers], 1), int(narrow.sum())


def _check(
    pixels: Tensor, weights: Tensor, numbers: Tensor, amounts: Tensor, side: int, fill: tuple[int, int, int]
) -> None:
    for name, tensor, dtype in (("pixels", pixels, torch.uint8), ("weights", weights, torch.int32)):
        if tensor.ndim != 1 or tensor.dtype != dtype or tensor.device != pixels.device:
            raise ValueError(
                f"{name} are {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; expected {dtype} with one "
                f"dimension on {pixels.device}"
            )
    for name, tensor, dtype, device, columns in (
        ("numbers", numbers, torch.int64, torch.device("cpu"), NUMBERS),
        ("amounts", amounts, torch.float32, pixels.device, MOST_STEPS),
    ):
        if tensor.shape != (len(numbers), columns) or tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"{name} are {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; expected {dtype} "
                f"[{len(numbers)}, {columns}] on {device}"
            )
    of_pixels, down, across = _lengths(numbers)
    for name, tensor, length in (("pixels", pixels, of_pixels), ("weights", weights, down + across)):
        if (needed := int(length.sum())) != len(tensor):
            raise ValueError(f"{name} are {len(tensor)}; the numbers of {len(numbers)} crops ask for {needed}")
    if side < 1:
        raise ValueError(f"side is {side}; expected at least 1 pixel")
    if len(numbers) and int((numbers[:, 7:9] + numbers[:, 9:11]).max()) > side:
        raise ValueError(f"side is {side}; the numbers describe crops that are larger")
    if any(not 0 <= level <= 255 for level in fill):
        raise ValueError(f"fill is {fill}; expected levels from 0 to 255")
