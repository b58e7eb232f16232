"""The jittered crop of the native library; OpenCV turns the hue between two passes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from cpn_kernels import native_library
from cpn_kernels.ops.jittered_crop.place import Kind, Place, Step, turn_hue

_KINDS: dict[Kind, int] = {"brightness": 0, "contrast": 1, "saturation": 2}
"""As csrc counts them; the hue is not among them."""


def is_supported(height: int, width: int, place: Place) -> bool:
    """Whether the library is there and takes these sizes: sides up to 32,767, not shrunk to a hundredth."""
    function = _function()
    if function is None or max(place.size) > 32767:
        return False
    return int(function.cpn_jittered_crop_cpu_workspace(height, width, *place.scaled)) >= 0


def jittered_crop(image: np.ndarray, place: Place, steps: Sequence[Step], fill: tuple[int, int, int]) -> np.ndarray:
    """The crop, uint8 [*place.size, 3]; see the public function."""
    kinds = [step.kind for step in steps]
    if "hue" not in kinds:
        return _pass(image, place, steps, fill)
    hue = kinds.index("hue")
    before, after = steps[:hue], steps[hue + 1 :]
    if "contrast" in kinds[hue:]:
        # The mean of the whole turned image is needed.
        shown = Place(place.scaled, False, place.scaled, (0, 0), (0, 0), place.scaled)
        rest = place
    else:
        shown = replace(place, size=place.extent, target=(0, 0))
        rest = Place(place.extent, False, place.size, (0, 0), place.target, place.extent)
    if 0 in shown.size:
        return _pass(image, place, (), fill)
    turned = turn_hue(_pass(image, shown, before, fill), steps[hue].amount)
    return _pass(turned, rest, after, fill)


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


def _pass(image: np.ndarray, place: Place, steps: Sequence[Step], fill: tuple[int, int, int]) -> np.ndarray:
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
    amounts = np.array([step.amount for step in steps], np.float32)
    colour = np.array(fill, np.uint8)
    status = library.cpn_jittered_crop_cpu(
        *(image.ctypes.data, height, width, geometry.ctypes.data, len(steps), kinds.ctypes.data, amounts.ctypes.data),
        *(colour.ctypes.data, output.ctypes.data, address, size),
    )
    native_library.check(status, "jittered_crop")
    return output
