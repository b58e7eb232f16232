"""Compiles the CUDA sources of kernels/csrc for one target, without a GPU, and reads what each kernel would use.

They are in a checkout and not in an installed wheel, and need nvcc: `missing()` says in words what is not there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from cpn_kernels.resources import Resources, tool

SOURCES = Path(__file__).resolve().parents[1] / "csrc"

OPTIONS = ("-std=c++17", "-O3", "--fmad=false")
"""As CMakeLists.txt builds them."""

_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_PASS = re.compile(r"run_passINS_\d+(\w+?)EEEv")


def missing() -> str:
    """Why the sources cannot be compiled here, in words; empty where they can."""
    if shutil.which("nvcc") is None:
        return "nvcc is missing: kernels/csrc/*.cu were not compiled"
    if not sorted(SOURCES.glob("*.cu")):
        return f"{SOURCES} holds no CUDA sources: they come with a checkout, not with a wheel"
    return "" if tool("cuobjdump") else "cuobjdump is missing: registers and stack of kernels/csrc/*.cu not checked"


def compile_sources(target: int) -> list[Resources]:
    """Machine code of every CUDA source for one target.

    Args:
        target: compute capability, such as 90.

    Returns:
        What each kernel uses.

    Raises:
        RuntimeError: if nvcc refuses a source, with its words, or something that it needs is missing.
    """
    if reason := missing():
        raise RuntimeError(reason)
    rows = []
    for source in sorted(SOURCES.glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            command = ["nvcc", *OPTIONS, f"-arch=sm_{target}", "-cubin", "-o", str(cubin), str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"nvcc refuses {source.name} for sm_{target}:\n{done.stderr}")
            rows += read_usage(source.stem, target, cubin)
    return rows


def read_usage(stem: str, target: int, cubin: Path) -> list[Resources]:
    """The kernels of a cubin, by name."""
    text = subprocess.run(
        [str(tool("cuobjdump")), "-res-usage", str(cubin)], capture_output=True, text=True, check=True
    )
    rows = []
    for name, registers, stack, shared, local in _USAGE.findall(text.stdout):
        known = _PASS.search(name)
        rows.append(
            Resources(
                f"{stem}.{known[1] if known else name}",
                target,
                warps=None,
                registers=int(registers),
                stack=int(stack) + int(local),
                shared=int(shared),
                tensor_core=None,
            )
        )
    return sorted(rows, key=lambda row: row.name)
