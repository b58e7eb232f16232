"""How time and memory are measured: the device is waited for, and memory is what one more call takes on top."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROUNDS = 5

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "B200": 2250.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.0}
"""Dense bf16 tensor-core rate by the maker's data sheet, by a part of the device's name."""

Call = Callable[[], Any]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Call, device: str, calls: int = 1) -> float:
    """Wall time of one call, the mean over `calls` in a row; the device has finished before and after."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return (time.perf_counter() - started) / calls


def _status_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def extra_peak_mib(call: Call, device: str) -> float | None:
    """Peak memory during one call beyond what was in use before it, in MiB; None where the system does not tell.

    On a GPU as torch's allocator counts it. On the CPU resident memory: freed pages are given back first, so that they
    do not hide what the call takes, and the kernel's high-water mark is set back.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before_mib = _status_mib("VmRSS")
    call()
    return _status_mib("VmHWM") - before_mib


def device_ms(call: Call, repeats: int = 20) -> float:
    """Time of one call on the GPU alone, without the host's launches: median over replays of a CUDA graph of ten."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            call()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 10)
    return statistics.median(times)


def peak_tflops() -> float | None:
    """The data sheet's dense bf16 rate of this GPU; None for one that the table does not have."""
    name = torch.cuda.get_device_name()
    return next((rate for part, rate in PEAK_TFLOPS.items() if part in name), None)


def matmul_tflops(side: int = 8192) -> float:
    """The bf16 rate that a large matrix product reaches here."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / device_ms(lambda: a @ b, 5) / 1e9


def copy_bytes_per_ms(size: int = 2**28) -> float:
    """Bytes read and written per millisecond by a plain copy of `size` bytes on the GPU."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / device_ms(lambda: target.copy_(source))
