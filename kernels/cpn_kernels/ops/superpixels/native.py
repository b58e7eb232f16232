"""SLIC of the native library: one C++ core on the CPU and, where it was built with nvcc, the same bits on a GPU."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cpn_kernels import native_library

MAX_SIDE = 32767
MAX_PIXELS = 2**28

_POINTER, _INT, _INT64, _DOUBLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double


@cache
def _functions() -> ctypes.CDLL:
    library = native_library.library()
    sizes: list[Any] = [_INT, _INT, _INT, _INT64, _DOUBLE]  # batch, height, width, segments, compactness
    library.cpn_superpixels_cpu_workspace.argtypes = [*sizes, _INT]
    library.cpn_superpixels_cpu_workspace.restype = _INT64
    library.cpn_superpixels_cpu.argtypes = [_POINTER, _POINTER, *sizes, _INT, _POINTER, _INT64]
    if native_library.has_cuda():
        library.cpn_superpixels_cuda_workspace.argtypes = sizes
        library.cpn_superpixels_cuda_workspace.restype = _INT64
        library.cpn_superpixels_cuda.argtypes = [_POINTER, _POINTER, *sizes, _POINTER, _INT64, _POINTER]
    return library


def version() -> int:
    """Of the algorithm: another number means other labels."""
    return int(_functions().cpn_superpixels_version())


def slic_native(images: Tensor, segments: int, compactness: float) -> Tensor:
    """SLIC of the native library; see the public function.

    Colours are CIELAB in eighths of a unit; ten iterations, of which all but the last look at every third row where
    cells are large enough. Afterwards the `segments` largest connected regions stay, and each smaller one joins a
    neighbour. On a GPU the work is queued on the current stream, and nothing waits for it.

    Args:
        images: uint8 [B, H, W, 3], RGB; sides up to 32,767 pixels and up to 2**28 pixels.
        segments: wanted number of regions, >= 1.
        compactness: > 0; past a few hundred segments are as square as they get.

    Returns:
        int32 [B, H, W], regions 0..n-1 in the order of their first pixels, n <= segments.

    Raises:
        ValueError: for larger images, or a compactness that is not positive.
        ImportError: where the library is missing.
        RuntimeError: for a CUDA error.
    """
    batch, height, width, _ = images.shape
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ValueError(f"images of {height} x {width} pixels; the native backend takes sides up to {MAX_SIDE}")
    if not compactness > 0:
        raise ValueError(f"compactness is {compactness}; expected a positive number")
    if images.numel() == 0:
        return torch.zeros((batch, height, width), dtype=torch.int32, device=images.device)
    return _slic_native(images, segments, compactness)


@torch.library.custom_op("cpn::superpixels_native", mutates_args=())
def _slic_native(images: Tensor, segments: int, compactness: float) -> Tensor:
    images = images.contiguous()
    labels = torch.empty(images.shape[:3], dtype=torch.int32, device=images.device)
    sizes = (*images.shape[:3], min(segments, MAX_PIXELS), compactness)
    if images.is_cuda:
        with torch.cuda.device(images.device):
            _run_cuda(images, labels, sizes)
    else:
        _run_cpu(images, labels, sizes)
    return labels


@_slic_native.register_fake
def _(images: Tensor, segments: int, compactness: float) -> Tensor:
    del segments, compactness
    return images.new_empty(images.shape[:3], dtype=torch.int32)


def _run_cpu(images: Tensor, labels: Tensor, sizes: tuple[float, ...]) -> None:
    library, threads = _functions(), torch.get_num_threads()
    size = library.cpn_superpixels_cpu_workspace(*sizes, threads)
    memory, address = native_library.workspace(size, images.device)
    status = library.cpn_superpixels_cpu(
        images.data_ptr(), labels.data_ptr(), *sizes, threads, address, memory.numel() - (address - memory.data_ptr())
    )
    native_library.check(status, "superpixels")


def _run_cuda(images: Tensor, labels: Tensor, sizes: tuple[float, ...]) -> None:
    library = _functions()
    size = library.cpn_superpixels_cuda_workspace(*sizes)
    if size < 0:
        native_library.check(1, "superpixels")
    memory, address = native_library.workspace(size, images.device)
    stream = torch.cuda.current_stream().cuda_stream
    status = library.cpn_superpixels_cuda(
        images.data_ptr(), labels.data_ptr(), *sizes, address, memory.numel() - (address - memory.data_ptr()), stream
    )
    native_library.check(status, "superpixels")
