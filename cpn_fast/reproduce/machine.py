"""The name of the machine, for records of measurements."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(device: str) -> str:
    """The name of what computes: the GPU's, or the CPU's with its number of cores.

    Args:
        device: "cuda" or "cpu".
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"
