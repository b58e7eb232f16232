"""Settings of the process that runs networks: the C allocator, TF32 and the number of torch's threads."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cpn_fast.files.errors import DataError

# glibc's mallopt parameters (malloc.h) and the largest values that fit its int argument comfortably.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP = 1 << 30
_TOP_PAD = 64 << 20


def tune_allocator() -> bool:
    """Make glibc keep freed blocks, so that each training step reuses the last one's pages.

    By default glibc gives large blocks back at once and every step faults all its pages in again. How much that costs
    depends on the machine: trials ranged from a large gain to a small loss. Memory once used stays with the process.

    Returns:
        True where glibc took the settings, False on other platforms, where nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    settings = ((_M_MMAP_THRESHOLD, _KEEP), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, _TOP_PAD))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def set_tf32(enabled: bool) -> None:
    """Allow or forbid TF32 in matrix products and convolutions on a GPU (10 bits of mantissa, much faster)."""
    import torch

    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


@contextmanager
def threads_shared_by(workers: int) -> Iterator[None]:
    """Let `workers` threads that begin in the block share torch's threads instead of each taking all of them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    return torch.cuda.is_available()


def ready_device(device: str) -> str:
    """Make the process ready for inference and name the device, "cpu" or "cuda".

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        DataError: for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU; use --device cpu, or install a CUDA build of torch")
    tune_allocator()
    set_tf32(True)
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, or for this process on a CPU (a container's limit counts); None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _meminfo("MemAvailable")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no control groups of version 2
        return available
    if limit == "max":
        return available
    left = max(0, int(limit) - int(used))
    return left if available is None else min(left, available)


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process so far in MiB: of the allocator on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
