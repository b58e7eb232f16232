"""The shared library of kernels/csrc, loaded with ctypes; without it the operators use their references."""

from __future__ import annotations

import ctypes
import importlib.resources
import logging
import os
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from cpn_kernels.constant import constant_in_graphs

logger = logging.getLogger(__name__)

NAME = "libcpn_native.so"
ABI = 4
"""Of the C interface that this Python code speaks; `cpn_native_abi` in csrc says the library's. It is raised where a
function that was there takes other arguments; of functions that are new `FUNCTIONS` knows."""

FUNCTIONS = (
    "cpn_superpixels_version",
    "cpn_superpixels_cpu",
    "cpn_superpixels_cpu_workspace",
    "cpn_cp_triplet_cpu",
    "cpn_cp_triplet_cpu_workspace",
    "cpn_dense_crf_cpu",
    "cpn_dense_crf_cpu_workspace",
    "cpn_dense_crf_scratch",
    "cpn_dense_crf_points_cpu",
    "cpn_dense_crf_lattice_cpu",
    "cpn_jittered_crop_cpu",
    "cpn_jittered_crop_cpu_workspace",
    "cpn_random_walk_cpu",
    "cpn_random_walk_cpu_workspace",
)
"""What every build has; one that lacks a function is older than this code."""

CUDA_FUNCTIONS = ("cpn_superpixels_cuda", "cpn_superpixels_cuda_workspace")
"""What a build with a CUDA compiler has too."""

VARIABLE = "CPN_NATIVE_LIBRARY"
"""Environment variable: path of another build of the library, or "none" to do without."""

_STATUS = {1: "an argument is out of range", 2: "the workspace is too small"}
_CUDA_ERROR = 1000
_ALIGNMENT = 64


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason in words; looked for once in a process."""
    named = os.environ.get(VARIABLE)
    if named == "none":
        return None, f"{VARIABLE} is none"
    try:
        if named:
            library = ctypes.CDLL(str(Path(named).absolute()))
        else:
            resource = importlib.resources.files("cpn_kernels") / NAME
            if not resource.is_file():
                return None, (
                    f"{NAME} is not installed with cpn_kernels: there was no C++17 compiler when it was built; "
                    "install one (g++ or clang) and reinstall"
                )
            with importlib.resources.as_file(resource) as path:
                library = ctypes.CDLL(str(path))
        found = int(library.cpn_native_abi())
    except (OSError, AttributeError) as error:
        return _refuse(f"{named or NAME} cannot be loaded ({error}); reinstall, or set {VARIABLE}")
    if found != ABI:
        return _refuse(f"{named or NAME} has interface {found}, this cpn_kernels needs {ABI}; {_rebuild(named)}")
    if lacking := [name for name in FUNCTIONS if not hasattr(library, name)]:
        return _refuse(f"{named or NAME} is of an earlier version: it has no {', '.join(lacking)}; {_rebuild(named)}")
    return library, ""


def _rebuild(named: str | None) -> str:
    """How to get a library that fits."""
    return f"build it again, or unset {VARIABLE}" if named else "reinstall the package, which builds it again"


def _refuse(reason: str) -> tuple[None, str]:
    logger.warning("%s; the reference operators are used", reason)
    return None, reason


def missing() -> str:
    """What it costs to be without the library, in one line with the reason; "" where it is loaded.

    The factors are those of benchmarks/results on one core: skimage's SLIC, the reference CRF and triplet.
    """
    loaded, reason = load()
    if loaded is not None:
        return ""
    return (
        f"the native library is missing: {reason}. Everything works without it, more slowly: superpixels take about 15 "
        "times as long, a dense CRF 10 times, the masked triplet of a training step 5 times"
    )


def library() -> ctypes.CDLL:
    """The library.

    Raises:
        ImportError: where there is none, with the reason.
    """
    loaded, reason = load()
    if loaded is None:
        raise ImportError(f"the native operators are not available: {reason}")
    return loaded


@constant_in_graphs
def available() -> bool:
    """Whether the library is there; a constant for a compiled graph."""
    return load()[0] is not None


@constant_in_graphs
def has_cuda() -> bool:
    """Whether the library is there and was built with a CUDA compiler; a constant for a compiled graph."""
    loaded = load()[0]
    return loaded is not None and all(hasattr(loaded, name) for name in CUDA_FUNCTIONS)


def check(status: int, name: str) -> None:
    """Raise RuntimeError for an error code of the C interface."""
    if status >= _CUDA_ERROR:
        raise RuntimeError(f"{name}: CUDA error {status - _CUDA_ERROR}")
    if status:
        raise RuntimeError(f"{name}: {_STATUS.get(status, f'error {status}')}")


def workspace(size: int, device: torch.device) -> tuple[Tensor, int]:
    """Uninitialised memory of `size` bytes: the tensor that holds it, and its first aligned address."""
    memory = torch.empty(size + _ALIGNMENT, dtype=torch.uint8, device=device)
    return memory, memory.data_ptr() + -memory.data_ptr() % _ALIGNMENT


def main() -> None:
    """Say on stdout whether the library is there, for `make setup`."""
    found = "the native library is there" + (", with its CUDA half" if has_cuda() else ", for the CPU")
    sys.stdout.write(f"cpn_kernels: {missing() or found}\n")


if __name__ == "__main__":
    main()
