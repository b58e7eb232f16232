"""The CP triplet on a GPU in one launch: normalise, draw the hide bits, write three views, count what is visible."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpn_kernels.backend import on_its_device
from cpn_kernels.ops.cp_triplet.reference import IMAGENET_STD

BLOCK = 1024
"""Pixels of one program."""


@triton.jit
def _of_channel(channel, red, green, blue):
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit
def _write_views(output, place, view_stride, value, state, inside):
    """`value` to I where the pixel is no padding, to I_h where it is visible, to I_hbar where it is hidden; else 0."""
    kind = output.dtype.element_ty
    tl.store(output + place, tl.where(state != 0, value, 0.0).to(kind), mask=inside)
    # Pointer by pointer: twice a stride of 32 bits might not fit into 32 bits.
    output += view_stride
    tl.store(output + place, tl.where(state == 1, value, 0.0).to(kind), mask=inside)
    output += view_stride
    tl.store(output + place, tl.where(state == 2, value, 0.0).to(kind), mask=inside)


@triton.jit
def triplet_kernel(
    images,  # uint8 [B, H, W, 3]
    patches,  # integer [B, H, W], or grid sides [B] if GRID
    keys,  # int64 [B]
    means,  # float32 [3], read if OWN_MEAN
    counts,  # int32 [B, 3], zero: image pixels, visible pixels, programs that are done
    output,  # [3B, 3, H, W]
    fraction,  # float32 [B]
    threshold,
    view_stride,
    width,
    pixels,
    mean_r,
    mean_g,
    mean_b,
    std_r,
    std_g,
    std_b,
    OWN_MEAN: tl.constexpr,
    GRID: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of an image's pixels."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    pixel = first + tl.arange(0, BLOCK)
    inside = pixel < pixels
    if GRID:
        side = tl.load(patches + image).to(tl.int32)
        across = (width + side - 1) // side
        patch = (pixel // width) // side * across + (pixel % width) // side
    else:
        patch = tl.load(patches + image * pixels + pixel, mask=inside, other=-1).to(tl.int32)
    word = tl.philox(tl.load(keys + image), patch, patch * 0, patch * 0, patch * 0)[0]
    hidden = word.to(tl.int64) < threshold
    counted = inside & (patch >= 0)
    state = tl.where(counted, tl.where(hidden, 2, 1), 0)  # in I and I_hbar, in I and I_h, in none

    images += image * pixels * 3
    output += image * pixels * 3
    if CHANNELS_LAST:
        # Three runs of contiguous elements, so that a thread stores 16 bytes at once; the draw stays one per pixel.
        for run in tl.static_range(3):
            local = run * BLOCK + tl.arange(0, BLOCK)
            element = first * 3 + local
            channel = local % 3
            held = element < pixels * 3
            mean = tl.load(means + channel) if OWN_MEAN else _of_channel(channel, mean_r, mean_g, mean_b)
            std = _of_channel(channel, std_r, std_g, std_b)
            colour = tl.load(images + element, mask=held, other=0).to(tl.float32)
            owner = tl.gather(state, local // 3, 0)
            _write_views(output, element, view_stride, (colour / 255 - mean) / std, owner, held)
    else:
        for channel in tl.static_range(3):
            mean = tl.load(means + channel) if OWN_MEAN else _of_channel(channel, mean_r, mean_g, mean_b)
            colour = tl.load(images + pixel * 3 + channel, mask=inside, other=0).to(tl.float32)
            value = (colour / 255 - mean) / _of_channel(channel, std_r, std_g, std_b)
            _write_views(output, channel * pixels + pixel, view_stride, value, state, inside)

    # The last program of an image divides. Each adds its counts before it takes its ticket.
    counts += image * 3
    tl.atomic_add(counts, tl.sum(counted.to(tl.int32)))
    tl.atomic_add(counts + 1, tl.sum((state == 1).to(tl.int32)))
    if tl.atomic_add(counts + 2, 1) == tl.num_programs(0) - 1:
        whole = tl.atomic_add(counts, 0)
        visible = tl.atomic_add(counts + 1, 0)
        tl.store(fraction + image, visible.to(tl.float32) / tl.maximum(whole, 1).to(tl.float32))


@on_its_device
def triplet(
    images: Tensor,
    patches: Tensor,
    keys: Tensor,
    threshold: int,
    mean: Tensor | None,
    mean_values: tuple[float, float, float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Triplet [3B, 3, H, W] and visible fraction [B]; see the public function.

    Args:
        images: uint8 [B, H, W, 3].
        patches: integer [B, H, W], or grid sides [B].
        keys: int64 [B].
        threshold: a patch is hidden where its word is below; 0..2**32.
        mean: channel means on the device, or None for `mean_values`, which need no transfer.
        mean_values: channel means.
        dtype: of the triplet.
        channels_last: memory of the triplet.
    """
    batch, height, width, _ = images.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    output = torch.empty(3 * batch, 3, height, width, dtype=dtype, device=images.device, memory_format=layout)
    fraction = torch.empty(batch, dtype=torch.float32, device=images.device)
    counts = torch.zeros(batch, 3, dtype=torch.int32, device=images.device)
    pixels = height * width
    if 3 * pixels >= 2**31:
        raise ValueError(f"images are {height} x {width}; the kernel counts an image's elements in 32 bits")
    triplet_kernel[(triton.cdiv(pixels, BLOCK), batch)](
        images.contiguous(),
        patches.contiguous(),
        keys.contiguous(),
        fraction if mean is None else mean.float().contiguous(),
        counts,
        output,
        fraction,
        threshold,
        3 * batch * pixels,
        width,
        pixels,
        *mean_values,
        *IMAGENET_STD,
        OWN_MEAN=mean is not None,
        GRID=patches.ndim == 1,
        CHANNELS_LAST=channels_last,
        BLOCK=BLOCK,
    )
    return output, fraction
