"""Superpixels: SLIC segments of 8-bit RGB images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cpn_kernels.superpixels import reference

__all__ = ["superpixels"]

Backend = Literal["skimage", "fast_slic"]


def superpixels(
    images: Tensor,  # [B, H, W, 3]
    segments: int,
    compactness: float = 10.0,
    backend: Backend | None = None,
) -> Tensor:
    """Cut each image into about `segments` connected regions of similar colour (SLIC on the RGB image).

    Args:
        images: uint8 [B, H, W, 3], RGB.
        segments: wanted number of regions per image, >= 1. The actual number is `labels.max() + 1`.
        compactness: weight of distance against colour difference, in CIELAB units.
        backend: "skimage", or "fast_slic" where that package is installed; None = "skimage".

    Returns:
        int32 [B, H, W] on the images' device: labels 0..n-1 without gaps, each region connected.

    Raises:
        ValueError: for another shape or dtype, fewer than one segment, or an unknown backend.
        ImportError: when the backend's package is not installed.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 [B, H, W, 3]")
    if segments < 1:
        raise ValueError(f"segments is {segments}; expected at least 1")
    backends = {None: reference.slic_skimage, "skimage": reference.slic_skimage, "fast_slic": reference.slic_fast_slic}
    if backend not in backends:
        raise ValueError(f"backend is {backend!r}; expected 'skimage' or 'fast_slic'")
    one_image = backends[backend]
    labels = [torch.from_numpy(one_image(image, segments, compactness)) for image in images.cpu().numpy()]
    if not labels:
        return torch.zeros(images.shape[:3], dtype=torch.int32, device=images.device)
    return torch.stack(labels).to(images.device)
