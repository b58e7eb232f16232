"""The random walk of the native library, on the CPU: every thread walks with maps of its own."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.backend import exporting


def is_supported(affinity: Tensor, maps: Tensor) -> bool:
    """Whether the native form is there and takes these: float32 on the CPU, and not while exporting."""
    return (
        not exporting()
        and affinity.device.type == maps.device.type == "cpu"
        and affinity.dtype == maps.dtype == torch.float32
        and native_library.available()
    )


def random_walk(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Maps [B, C, h, w] after the steps; `affinity` as it weighs, its power taken. See the public function."""
    return _walk(affinity, maps, steps)


@cache
def _function() -> ctypes.CDLL:
    library = native_library.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.cpn_random_walk_cpu_workspace.argtypes = [number, number, number, number]
    library.cpn_random_walk_cpu_workspace.restype = ctypes.c_int64
    library.cpn_random_walk_cpu.argtypes = [
        *(pointer, pointer, number, number, number, number),  # affinity, maps, batch, classes, height, width
        *(ctypes.c_int64, pointer, number, pointer, ctypes.c_int64),  # steps, output, threads, workspace, its bytes
    ]
    return library


@torch.library.custom_op("cpn::random_walk_native", mutates_args=())
def _walk(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    affinity, maps = affinity.contiguous(), maps.contiguous()
    output = torch.empty_like(maps)
    library, (batch, classes, height, width) = _function(), maps.shape
    size = library.cpn_random_walk_cpu_workspace(batch, classes, height, width)
    memory, address = native_library.workspace(size, maps.device)
    status = library.cpn_random_walk_cpu(
        *(affinity.data_ptr(), maps.data_ptr(), batch, classes, height, width, steps, output.data_ptr()),
        *(torch.get_num_threads(), address, memory.numel() - (address - memory.data_ptr())),
    )
    native_library.check(status, "random_walk")
    return output


@_walk.register_fake
def _(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    del affinity, steps
    return torch.empty_like(maps, memory_format=torch.contiguous_format)
