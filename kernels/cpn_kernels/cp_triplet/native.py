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
from cpn_kernels.cp_triplet import reference

PATCH_DTYPES = (torch.int16, torch.int32, torch.int64)


def suits(images: Tensor, patches: Tensor) -> bool:
    """Whether the native form is there and takes these: on the CPU, and not while exporting (it has no ONNX form)."""
    return (
        not exporting()
        and images.device.type == "cpu"
        and patches.dtype in PATCH_DTYPES
        and images.shape[1] * images.shape[2] < 2**31
        and native_library.available()
    )


def cp_triplet(
    images: Tensor, patches: Tensor, keys: Tensor, p_hidden: float, mean: Sequence[float] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Triplet [3B, 3, H, W] and visible fraction [B]; see the public function."""
    # All that an 8-bit value can become, by the reference's own arithmetic.
    values = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(1, 256, 1, 3)
    colours = reference.normalise_images(values, mean)[0, :, :, 0].contiguous()
    stack, counts = _triplet(images, patches, keys, colours, math.floor(p_hidden * 2**32))
    visible_fraction = counts[:, 1].float() / counts[:, 0].clamp(min=1).float()
    return stack.permute(0, 3, 1, 2), visible_fraction


@cache
def _function() -> ctypes.CDLL:
    library = native_library.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.cpn_cp_triplet_cpu_workspace.argtypes = [number, number]
    library.cpn_cp_triplet_cpu_workspace.restype = ctypes.c_int64
    library.cpn_cp_triplet_cpu.argtypes = [
        *(pointer, pointer, number, pointer),  # images, patches, bytes of a patch id, keys
        *(ctypes.c_uint64, pointer, number, number),  # threshold, colours, batch, pixels
        *(pointer, pointer, number, pointer, ctypes.c_int64),  # triplet, counts, threads, workspace and its bytes
    ]
    return library


@torch.library.custom_op("cpn::cp_triplet_native", mutates_args=())
def _triplet(
    images: Tensor,  # [B, H, W, 3]
    patches: Tensor,  # [B, H, W]
    keys: Tensor,  # [B]
    colours: Tensor,  # [3, 256]
    threshold: int,
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = images.shape
    images, patches, keys, colours = (t.contiguous() for t in (images, patches, keys, colours))
    stack = torch.empty((3 * batch, height, width, 3))
    counts = torch.empty((batch, 2), dtype=torch.int64)
    library, threads = _function(), torch.get_num_threads()
    memory, address = native_library.workspace(library.cpn_cp_triplet_cpu_workspace(batch, threads), images.device)
    status = library.cpn_cp_triplet_cpu(
        *(images.data_ptr(), patches.data_ptr(), patches.element_size(), keys.data_ptr()),
        *(threshold, colours.data_ptr(), batch, height * width),
        *(stack.data_ptr(), counts.data_ptr(), threads, address, memory.numel() - (address - memory.data_ptr())),
    )
    native_library.check(status, "cp_triplet")
    return stack, counts


@_triplet.register_fake
def _(images: Tensor, patches: Tensor, keys: Tensor, colours: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    del patches, keys, colours, threshold
    batch, height, width, _ = images.shape
    return images.new_empty((3 * batch, height, width, 3), dtype=torch.float32), images.new_empty(
        (batch, 2), dtype=torch.int64
    )
