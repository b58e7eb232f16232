"""Complementary patches: the triplet (I, I_h, I_hbar) of an image batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpn_kernels.backend import use_triton
from cpn_kernels.ops.cp_triplet import native, reference
from cpn_kernels.ops.cp_triplet.op import cp_triplet_op
from cpn_kernels.ops.cp_triplet.reference import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "cp_triplet", "normalise_images"]


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 [B, H, W, 3]")


def normalise_images(images: Tensor, mean: Sequence[float] | Tensor | None = None) -> Tensor:
    """Scale 8-bit RGB to [0, 1] and normalise it: (x / 255 - mean) / std.

    Args:
        images: uint8 [B, H, W, 3], RGB.
        mean: 3 channel means in [0, 1]; None = ImageNet's. The std is always ImageNet's.

    Returns:
        float32 [B, 3, H, W] in channels_last memory.

    Raises:
        ValueError: for another shape or dtype.
    """
    _check_images(images)
    return reference.normalise_images(images, mean)


def cp_triplet(
    images: Tensor,  # [B, H, W, 3]
    patches: Tensor,  # [B, H, W] or [B]
    keys: Tensor,  # [B]
    p_hidden: float,
    *,
    mean: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor]:
    """Normalise the images and hide complementary sets of patches (paper section 3.1; I, I_h, I_hbar and lambda).

    A patch is hidden in I_h iff word 0 of Philox4x32-10 at (key, counter (patch, 0, 0, 0)) is below
    floor(p_hidden * 2**32), and in I_hbar otherwise. Hidden pixels are 0 after normalisation, hence
    I_h + I_hbar = I exactly. Pixels of patch -1 are crop padding: 0 in all three, counted in no fraction.

    Args:
        images: uint8 [B, H, W, 3], RGB.
        patches: patch of every pixel, integer [B, H, W], in [0, 2**31), or -1 for padding; or [B], the side S >= 1 of
            each image's grid of ceil(H / S) x ceil(W / S) patches, counted row by row, without padding.
        keys: int64 [B], one random key per image.
        p_hidden: probability with which a patch is hidden in I_h, in [0, 1].
        mean: 3 channel means in [0, 1], the colour of hidden pixels; None = ImageNet's.
        dtype: of the stack, float32 or bfloat16.
        memory_format: of the stack, torch.channels_last or torch.contiguous_format.

    Returns:
        The stack (I of all images, I_h of all, I_hbar of all), [3B, 3, H, W], and
        visible_fraction (lambda), float32 [B]: the share of the image pixels that I_h shows; 0 where all is padding.

    Raises:
        ValueError: for another shape or dtype, or a probability outside [0, 1].
        RuntimeError: on the CPU for a side below 1 (a GPU would have to wait to find out).
    """
    _check_images(images)
    if (
        patches.shape not in (images.shape[:3], images.shape[:1])
        or patches.dtype.is_floating_point
        or patches.dtype == torch.bool
    ):
        raise ValueError(
            f"patches are {patches.dtype} {tuple(patches.shape)}; expected integers {tuple(images.shape[:3])}, "
            f"or sides {tuple(images.shape[:1])}"
        )
    if keys.shape != images.shape[:1] or keys.dtype != torch.int64:
        raise ValueError(f"keys are {keys.dtype} {tuple(keys.shape)}; expected int64 {tuple(images.shape[:1])}")
    if not 0 <= p_hidden <= 1:
        raise ValueError(f"p_hidden is {p_hidden}; expected a probability in [0, 1]")
    channels_last = memory_format == torch.channels_last
    if use_triton(images, patches, keys):
        values = (0.0, 0.0, 0.0) if isinstance(mean, Tensor) else IMAGENET_MEAN if mean is None else mean
        return cp_triplet_op(
            images,
            patches,
            keys,
            math.floor(p_hidden * 2**32),
            mean if isinstance(mean, Tensor) else None,
            [float(value) for value in values],
            dtype,
            channels_last,
        )
    if native.is_supported(images, patches, dtype):
        return native.cp_triplet(images, patches, keys, p_hidden, mean, dtype, channels_last)
    triplet, visible_fraction = reference.cp_triplet(images, patches, keys, p_hidden, mean)
    return triplet.to(dtype=dtype, memory_format=memory_format), visible_fraction
