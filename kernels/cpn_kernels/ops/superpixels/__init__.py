"""Superpixels: SLIC segments of 8-bit RGB images."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.ops.superpixels import native, reference

__all__ = ["Backend", "backend_version", "is_available", "resolve_backend", "superpixels"]

Backend = Literal["auto", "native", "skimage", "fast-slic"]

_PER_IMAGE = {"skimage": reference.slic_skimage, "fast-slic": reference.slic_fast_slic}


def resolve_backend(backend: Backend) -> Literal["native", "skimage", "fast-slic"]:
    """What "auto" means here: "native" where the native library is there, else "skimage".

    Raises:
        ValueError: for an unknown backend.
    """
    if backend == "auto":
        return "native" if native_library.available() else "skimage"
    if backend != "native" and backend not in _PER_IMAGE:
        raise ValueError(f"backend is {backend!r}; expected 'auto', 'native', 'skimage' or 'fast-slic'")
    return backend


def is_available(device: torch.device, backend: Backend = "auto") -> bool:
    """Whether the labels of images on a device are made there, without a way over the host or a wait for the device.

    Raises:
        ValueError: for an unknown backend.
    """
    if resolve_backend(backend) != "native" or not native_library.available():
        return False
    return device.type == "cpu" or (device.type == "cuda" and native_library.has_cuda())


def backend_version(backend: Backend) -> str:
    """Which backend, and which version of it: the same words mean the same labels.

    Raises:
        ValueError: for an unknown backend.
        ImportError: when the backend is not installed.
    """
    resolved = resolve_backend(backend)
    if resolved == "native":
        return f"native {native.version()}"
    package = {"skimage": "scikit-image", "fast-slic": "fast-slic"}[resolved]
    try:
        return f"{resolved} {version(package)}"
    except PackageNotFoundError as error:
        raise ImportError(f"backend {resolved!r} needs the package {package}: pip install {package}") from error


def superpixels(
    images: Tensor,  # [B, H, W, 3]
    segments: int,
    compactness: float = 10.0,
    backend: Backend = "auto",
) -> Tensor:
    """Cut each image into about `segments` connected regions of similar colour (SLIC on the RGB image).

    Args:
        images: uint8 [B, H, W, 3], RGB.
        segments: wanted number of regions per image, >= 1. The actual number is `labels.max() + 1`.
        compactness: weight of distance against colour difference, in CIELAB units.
        backend: "native" (C++, on a GPU CUDA; the same labels for any number of threads and on any device), "skimage",
            or "fast-slic" where that package is installed; "auto" = native where the library is there, else skimage.

    Returns:
        int32 [B, H, W] on the images' device: labels 0..n-1 without gaps, each region connected.

    Raises:
        ValueError: for another shape or dtype, fewer than one segment, or an unknown backend.
        ImportError: when the backend is not installed.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 [B, H, W, 3]")
    if segments < 1:
        raise ValueError(f"segments is {segments}; expected at least 1")
    resolved = resolve_backend(backend)
    if resolved == "native":
        there = images if is_available(images.device, resolved) else images.cpu()
        return native.slic_native(there, segments, compactness).to(images.device)
    one_image = _PER_IMAGE[resolved]
    labels = [torch.from_numpy(one_image(image, segments, compactness)) for image in images.cpu().numpy()]
    if not labels:
        return torch.zeros(images.shape[:3], dtype=torch.int32, device=images.device)
    return torch.stack(labels).to(images.device)
