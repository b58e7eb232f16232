"""The CP triplet of the native library, on the CPU: one pass over the pixels, bit-equal to the reference."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.backend import exporting
from cpn_kernels.ops.cp_triplet import reference

PATCH_DTYPES = (torch.int16, torch.int32, torch.int64)
DTYPES = (torch.float32, torch.bfloat16)


def is_supported(images: Tensor, patches: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the native form is there and takes these: on the CPU, and not while exporting (it has no ONNX form)."""
    return (
        not exporting()
        and images.device.type == "cpu"
        and patches.device.type == "cpu"
        and patches.dtype in PATCH_DTYPES
        and dtype in DTYPES
        and images.shape[1] * images.shape[2] < 2**31
        and native_library.available()
    )


def cp_triplet(
    images: Tensor,
    patches: Tensor,
    keys: Tensor,
    p_hidden: float,
    mean: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> tuple[Tensor, Tensor]:
    """Triplet [3B, 3, H, W] and visible fraction [B]; see the public function."""
    # All that an 8-bit value can become, by the reference's own arithmetic and rounding: the library copies bits.
    values = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(1, 256, 1, 3)
    colours = reference.normalise_images(values, mean)[0, :, :, 0].contiguous().to(dtype)
    stack, counts = _triplet(images, patches, keys, colours, math.floor(p_hidden * 2**32), channels_last)
    visible_fraction = counts[:, 1].float() / counts[:, 0].clamp(min=1).float()
    return stack, visible_fraction


@cache
def _function() -> ctypes.CDLL:
    library = native_library.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.cpn_cp_triplet_cpu_workspace.argtypes = [number, number]
    library.cpn_cp_triplet_cpu_workspace.restype = ctypes.c_int64
    library.cpn_cp_triplet_cpu.argtypes = [
        *(pointer, pointer, number, number, pointer),  # images, patches, bytes of an id or a side, whether grid, keys
        *(ctypes.c_uint64, pointer, number, number),  # threshold, colours, bytes of one, whether channels_last
        *(number, number, number, pointer, pointer),  # batch, height, width, triplet, counts
        *(number, pointer, ctypes.c_int64),  # threads, workspace and its bytes
    ]
    return library


def _empty_stack(images: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    batch, height, width, _ = images.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((3 * batch, 3, height, width), dtype=dtype, device=images.device, memory_format=layout)


@torch.library.custom_op("cpn::cp_triplet_native", mutates_args=())
def _triplet(
    images: Tensor,  # [B, H, W, 3]
    patches: Tensor,  # [B, H, W] or [B]
    keys: Tensor,  # [B]
    colours: Tensor,  # [3, 256], of the stack's dtype
    threshold: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = images.shape
    images, patches, keys, colours = (t.contiguous() for t in (images, patches, keys, colours))
    stack = _empty_stack(images, colours.dtype, channels_last)
    counts = torch.empty((batch, 2), dtype=torch.int64)
    library, threads = _function(), torch.get_num_threads()
    memory, address = native_library.workspace(library.cpn_cp_triplet_cpu_workspace(batch, threads), images.device)
    status = library.cpn_cp_triplet_cpu(
        *(images.data_ptr(), patches.data_ptr(), patches.element_size(), patches.ndim == 1, keys.data_ptr()),
        *(threshold, colours.data_ptr(), colours.element_size(), channels_last),
        *(batch, height, width, stack.data_ptr(), counts.data_ptr()),
        *(threads, address, memory.numel() - (address - memory.data_ptr())),
    )
    native_library.check(status, "cp_triplet")
    return stack, counts


@_triplet.register_fake
def _(
    images: Tensor, patches: Tensor, keys: Tensor, colours: Tensor, threshold: int, channels_last: bool
) -> tuple[Tensor, Tensor]:
    del patches, keys, threshold
    counts = images.new_empty((images.shape[0], 2), dtype=torch.int64)
    return _empty_stack(images, colours.dtype, channels_last), counts
