"""The dense CRF of the native library, on the CPU: lattices as tables, mean field in vector lanes of classes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from cpn_kernels import native_library

MAX_CLASSES = 256

_POINTER, _INT, _INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


class _Lattice(ctypes.Structure):
    """`cpn::Lattice` of csrc/dense_crf.h."""

    _fields_ = (
        ("corners", ctypes.c_int32),
        ("points", ctypes.c_int32),
        ("compat", ctypes.c_float),
        ("corner_points", _POINTER),
        ("corner_weights", _POINTER),
        ("neighbours", _POINTER),
        ("point_begin", _POINTER),
        ("point_pixels", _POINTER),
        ("point_weights", _POINTER),
    )


@cache
def _functions() -> ctypes.CDLL:
    library = native_library.library()
    plan = (_INT, _INT, _POINTER, _INT)  # height, width, standard deviations and their number
    scratch = (_INT, _POINTER, _INT64)  # threads, memory and its bytes
    library.cpn_dense_crf_scratch.argtypes = plan
    library.cpn_dense_crf_scratch.restype = _INT64
    library.cpn_dense_crf_points_cpu.argtypes = [_POINTER, *plan, _POINTER, _POINTER, *scratch]
    library.cpn_dense_crf_points_cpu.restype = _INT64
    library.cpn_dense_crf_lattice_cpu.argtypes = [*plan, _POINTER, _POINTER, *scratch]
    sizes = (_INT, _INT, _INT)  # height, width, classes
    library.cpn_dense_crf_cpu_workspace.argtypes = [*sizes, _POINTER, _INT]
    library.cpn_dense_crf_cpu_workspace.restype = _INT64
    library.cpn_dense_crf_cpu.argtypes = [_POINTER, *sizes, _INT, _POINTER, _INT, _POINTER, *scratch]
    return library


class Lattice:
    """The permutohedral lattice of an image of `height` x `width` pixels, and what holds its memory.

    Args:
        image: uint8 [H, W, 3], contiguous; None for a Gaussian of the position alone.
        deviations: standard deviations of x and y in pixels and, with an image, of red, green and blue.
        compat: weight of the kernel.
        threads: >= 1; the lattice is the same for any number.
        size: (H, W).

    Raises:
        ValueError: where a standard deviation is too small for an image of this size.
    """

    def __init__(
        self, image: Tensor | None, deviations: Sequence[float], compat: float, threads: int, size: tuple[int, int]
    ) -> None:
        library, pixels, corners = _functions(), size[0] * size[1], len(deviations) + 1
        numbers = (ctypes.c_double * len(deviations))(*deviations)
        plan = (*size, ctypes.cast(numbers, _POINTER), len(deviations))
        needed = library.cpn_dense_crf_scratch(*plan)
        if needed < 0:
            raise ValueError(f"standard deviations {tuple(deviations)} are too small for {size[0]} x {size[1]} pixels")
        memory, address = native_library.workspace(needed, torch.device("cpu"))
        scratch = (threads, address, memory.numel() - (address - memory.data_ptr()))
        corner_points = torch.empty((pixels, corners), dtype=torch.int32)
        corner_weights = torch.empty((pixels, corners), dtype=torch.float32)
        points = library.cpn_dense_crf_points_cpu(
            None if image is None else image.data_ptr(),
            *(*plan, corner_points.data_ptr(), corner_weights.data_ptr(), *scratch),
        )
        if points < 0:
            native_library.check(-points, "dense_crf")
        neighbours = torch.empty((corners, points, 2), dtype=torch.int32)
        self._held = [corner_points, corner_weights, neighbours]
        self.struct = _Lattice(corners, points, compat, *(held.data_ptr() for held in self._held), None, None, None)
        if threads > 1:
            self._held += [torch.empty(points + 1, dtype=torch.int32), torch.empty(pixels * corners, dtype=torch.int32)]
            self._held.append(torch.empty(pixels * corners, dtype=torch.float32))
            for (name, _), held in zip(_Lattice._fields_[6:], self._held[3:], strict=True):
                setattr(self.struct, name, held.data_ptr())
        values = torch.empty(2 * (points + 1), dtype=torch.float32)
        status = library.cpn_dense_crf_lattice_cpu(*plan, ctypes.addressof(self.struct), values.data_ptr(), *scratch)
        native_library.check(status, "dense_crf")


def _mean_field(log_probabilities: Tensor, out: Tensor, iterations: int, lattices: list[Lattice], threads: int) -> None:
    """One image: float32 [C, H, W], both contiguous."""
    library = _functions()
    structs = (_Lattice * len(lattices))(*(lattice.struct for lattice in lattices))
    sizes, kernels = (out.shape[1], out.shape[2], len(out)), (ctypes.addressof(structs), len(lattices))
    memory, address = native_library.workspace(library.cpn_dense_crf_cpu_workspace(*sizes, *kernels), out.device)
    status = library.cpn_dense_crf_cpu(
        *(log_probabilities.data_ptr(), *sizes, iterations, *kernels, out.data_ptr()),
        *(threads, address, memory.numel() - (address - memory.data_ptr())),
    )
    native_library.check(status, "dense_crf")


@torch.library.custom_op("cpn::dense_crf_native", mutates_args=())
def dense_crf(
    images: Tensor,  # [B, H, W, 3]
    log_probabilities: Tensor,  # [B, C, H, W]
    iterations: int,
    gaussian: Sequence[float],
    bilateral: Sequence[float],
    gaussian_compat: float,
    bilateral_compat: float,
) -> Tensor:
    """Mean field of each image, on torch's number of threads; see the public function.

    Args:
        images: uint8 [B, H, W, 3] on the CPU, not empty.
        log_probabilities: float32 [B, C, H, W] on the CPU, C <= 256.
        iterations: >= 0.
        gaussian: standard deviations of x and y, in pixels.
        bilateral: of x and y in pixels, and of red, green and blue in 8-bit steps.
        gaussian_compat: weight of the kernel; 0 = without it.
        bilateral_compat: likewise.

    Returns:
        float32 [B, C, H, W].

    Raises:
        ValueError: where a standard deviation is too small for images of this size.
        ImportError: where the library is missing.
    """
    images, log_probabilities = images.contiguous(), log_probabilities.contiguous()
    out = torch.empty_like(log_probabilities)
    size = (images.shape[1], images.shape[2])
    threads = torch.get_num_threads()
    teams = min(len(images), threads)
    each = threads // teams
    shared = [Lattice(None, gaussian, gaussian_compat, threads, size)] if gaussian_compat else []

    def run(index: int) -> None:
        own = [Lattice(images[index], bilateral, bilateral_compat, each, size)] if bilateral_compat else []
        _mean_field(log_probabilities[index], out[index], iterations, shared + own, each)

    with ThreadPoolExecutor(teams) as pool:  # the library's functions run without the interpreter's lock
        list(pool.map(run, range(len(images))))
    return out


@dense_crf.register_fake
def _(
    images: Tensor,
    log_probabilities: Tensor,
    iterations: int,
    gaussian: Sequence[float],
    bilateral: Sequence[float],
    gaussian_compat: float,
    bilateral_compat: float,
) -> Tensor:
    del images, iterations, gaussian, bilateral, gaussian_compat, bilateral_compat
    return torch.empty_like(log_probabilities)
