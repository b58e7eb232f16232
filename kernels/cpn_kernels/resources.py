"""What a compiled kernel uses of a GPU, what a GPU grants it, and NVIDIA's tools that tell."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that one block may have, by target."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses; None where cuobjdump or nvdisasm is missing to tell.

    Attributes:
        name: of the case.
        target: compute capability, two or three digits.
        warps: per block; None for CUDA sources, whose launch says it.
        registers: per thread.
        stack: bytes of local memory per thread, spilled registers among them.
        shared: bytes of shared memory per block.
        tensor_core: instructions of the tensor cores in the machine code.
    """

    name: str
    target: int
    warps: int | None
    registers: int | None
    stack: int | None
    shared: int
    tensor_core: int | None

    def faults(self, needs_tensor_core: bool = False) -> list[str]:
        """What keeps this kernel from running well, in words; empty if nothing does."""
        found = []
        if self.stack:
            found.append(f"{self.stack} bytes of stack: it spills registers")
        if self.shared > SHARED_LIMIT[self.target]:
            found.append(f"{self.shared} bytes of shared memory; sm_{self.target} grants {SHARED_LIMIT[self.target]}")
        if needs_tensor_core and self.tensor_core == 0:
            found.append("no tensor-core instruction")
        return [f"{self.name} on sm_{self.target}: {fault}" for fault in found]


def tool(name: str) -> str | None:
    """Path of one of NVIDIA's binary tools: Triton's own copy, else the one on PATH, else None."""
    import triton

    own = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / name
    return str(own) if own.is_file() else shutil.which(name)
