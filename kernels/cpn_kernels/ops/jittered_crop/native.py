"""The jittered crop of the native library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np

from cpn_kernels import native_library
from cpn_kernels.ops.jittered_crop.place import Kind, Place, Step, hue_shift

_KINDS: dict[Kind, int] = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
"""As csrc counts them."""


def is_supported(height: int, width: int, place: Place) -> bool:
    """Whether the library is there and takes these sizes: sides up to 32,767, not shrunk to a hundredth."""
    function = _function()
    if function is None or max(place.size) > 32767:
        return False
    return int(function.cpn_jittered_crop_cpu_workspace(height, width, *place.scaled)) >= 0


def jittered_crop(image: np.ndarray, place: Place, steps: Sequence[Step], fill: tuple[int, int, int]) -> np.ndarray:
    """The crop, uint8 [*place.size, 3]; see the public function."""
    library = _function()
    if library is None:
        raise ImportError("the native library has no jittered crop: reinstall")
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    size = library.cpn_jittered_crop_cpu_workspace(height, width, *place.scaled)
    memory = np.empty(size + 64, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 64
    output = np.empty((*place.size, 3), np.uint8)
    geometry = np.array([*place.scaled, place.flip, *place.size, *place.source, *place.target, *place.extent], np.int32)
    kinds = np.array([_KINDS[step.kind] for step in steps], np.int32)
    strengths = [hue_shift(step.amount) if step.kind == "hue" else step.amount for step in steps]
    amounts = np.array(strengths, np.float32)
    colour = np.array(fill, np.uint8)
    status = library.cpn_jittered_crop_cpu(
        *(image.ctypes.data, height, width, geometry.ctypes.data, len(steps), kinds.ctypes.data, amounts.ctypes.data),
        *(colour.ctypes.data, output.ctypes.data, address, size),
    )
    native_library.check(status, "jittered_crop")
    return output


@cache
def _function() -> ctypes.CDLL | None:
    if not native_library.available():
        return None
    library = native_library.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.cpn_jittered_crop_cpu_workspace.argtypes = [number, number, number, number]
    library.cpn_jittered_crop_cpu_workspace.restype = ctypes.c_int64
    library.cpn_jittered_crop_cpu.argtypes = [
        *(pointer, number, number, pointer, number, pointer, pointer),  # image, height, width, geometry, steps, ...
        *(pointer, pointer, pointer, ctypes.c_int64),  # fill, output, workspace, its bytes
    ]
    return library
