"""Compiles every Triton kernel and CUDA source for GPUs that are not here, and reads what each would use of them.

`python -m cpn_kernels.offline --table FILE` compiles for all targets, one process each, and writes the table; with
`--target 90` it does one and prints JSON. A kernel fails that spills registers or asks for more shared memory than the
target grants a block; so does a tensor-core kernel whose machine code holds no tensor-core instruction.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cpn_kernels import offline_cuda
from cpn_kernels.resources import SHARED_LIMIT, Resources, tool

TARGETS = (80, 86, 89, 90, 100)
SOURCES = ("pixel_correlation", "cp_triplet", "cp_loss", "random_walk", "dense_crf", "patch_crop", "augmented_crop")
"""Operators whose `offline_cases.py` says what to compile."""

TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA)\b")


@dataclass(frozen=True)
class Case:
    """One kernel with the constants it is compiled with.

    Attributes:
        name: what the table calls it.
        kernel: a function decorated by `triton.jit`.
        types: Triton type of every argument that is no constant, such as "*fp32" or "i32"; pointers are taken to be
            16-byte aligned, as torch allocates them.
        constants: value of every other argument.
        options: num_warps, num_stages, enable_fp_fusion.
        tensor_core: whether its machine code must hold tensor-core instructions.
        common: whether an ordinary training step launches it; CI compiles these alone.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tensor_core: bool = False
    common: bool = False

    def of_ones(self) -> Case:
        """The case as Triton compiles it where every 32-bit size and stride is 1: such a number becomes a constant."""
        sizes = [name for name, kind in self.types.items() if kind == "i32"]
        types = {name: kind for name, kind in self.types.items() if name not in sizes}
        return replace(self, name=f"{self.name}, ones", types=types, constants=self.constants | dict.fromkeys(sizes, 1))


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _machine_code(cubin: bytes) -> tuple[int | None, int | None, int | None]:
    """Registers, stack bytes and tensor-core instructions of the one kernel in a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        registers = stack = count = None
        if (cuobjdump := tool("cuobjdump")) is not None:
            usage = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", _output([cuobjdump, "-res-usage", str(path)]))
            if usage is None:
                raise RuntimeError(f"{cuobjdump} printed no resource usage")
            registers, stack = int(usage[1]), int(usage[2]) + int(usage[3])
        if (nvdisasm := tool("nvdisasm")) is not None:
            count = len(TENSOR_CORE.findall(_output([nvdisasm, "-c", str(path)])))
    return registers, stack, count


def compile_case(case: Case, target: int) -> Resources:
    """Compile one kernel for one target.

    Args:
        case: kernel and constants.
        target: compute capability, such as 90.

    Returns:
        What it uses.

    Raises:
        ValueError: if an argument has neither a type nor a value, or the kernel is an interpreted one.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = getattr(case.kernel, "arg_names", None)
    if names is None or not hasattr(case.kernel, "params") or triton.knobs.runtime.interpret:
        raise ValueError(f"{case.name} is no compilable kernel: unset TRITON_INTERPRET")
    if missing := [name for name in names if name not in case.types and name not in case.constants]:
        raise ValueError(f"{case.name}: no type or value for {', '.join(missing)}")
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if signature[name].startswith("*")
    }
    source = ASTSource(case.kernel, signature, constexprs=case.constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=case.options)
    registers, stack, tensor_core = _machine_code(compiled.asm["cubin"])
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    return Resources(case.name, target, warps, registers, stack, shared, tensor_core)


def cases(target: int) -> list[Case]:
    """Every kernel as it would be launched on the target.

    Args:
        target: compute capability, such as 90.
    """
    capability = divmod(target, 10)
    return [
        case
        for source in SOURCES
        for case in importlib.import_module(f"cpn_kernels.ops.{source}.offline_cases").offline_cases(capability)
    ]


def compile_target(target: int, common: bool = False) -> tuple[list[Resources], list[str]]:
    """Compile the kernels for one target: what they use, and what is wrong with them.

    Args:
        target: compute capability, such as 90.
        common: those of an ordinary training step alone, and with sizes of 1 for the first of `TARGETS` alone: it is
            the types of Triton's front end that they change, and those are the same for every target.
    """
    rows, faults = [], []
    for case in cases(target):
        if common and not case.common:
            continue
        # With sizes of 1 it must compile; what it uses then is of no interest.
        if case.common and (not common or target == TARGETS[0]):
            compile_case(case.of_ones(), target)
        row = compile_case(case, target)
        rows.append(row)
        faults += row.faults(case.tensor_core)
    if not common and not offline_cuda.missing():
        for row in offline_cuda.compile_sources(target):
            rows.append(row)
            faults += row.faults()
    return rows, faults


def unchecked() -> list[str]:
    """What cannot be told on this machine, in words."""
    checks = {"cuobjdump": "registers and spills", "nvdisasm": "tensor-core instructions"}
    found = [f"{name} is missing: {what} not checked" for name, what in checks.items() if tool(name) is None]
    return [*found, reason] if (reason := offline_cuda.missing()) else found


def _all_targets(targets: Sequence[int]) -> dict[str, Any]:
    table: dict[str, Any] = {"unchecked": unchecked(), "faults": [], "kernels": []}
    for target in targets:
        # One process per target: the compiler keeps state between targets.
        done = subprocess.run(
            [sys.executable, "-m", "cpn_kernels.offline", "--target", str(target)], capture_output=True, text=True
        )
        if not done.stdout:
            raise RuntimeError(f"compilation for sm_{target} failed:\n{done.stderr}")
        part = json.loads(done.stdout)
        table["kernels"] += part["kernels"]
        table["faults"] += part["faults"]
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile; 1 if a kernel is at fault."""
    import triton

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--target", type=int, choices=TARGETS, help="compile for this one alone and print JSON")
    parser.add_argument("--common", action="store_true", help="with --target: the kernels of a training step alone")
    parser.add_argument("--table", type=Path, help="write what every kernel uses here")
    options = parser.parse_args(arguments)
    if options.target is not None:
        rows, faults = compile_target(options.target, options.common)
        table: dict[str, Any] = {"kernels": [asdict(row) for row in rows], "faults": faults}
    else:
        table = {"triton": triton.__version__, "shared_limit": SHARED_LIMIT} | _all_targets(TARGETS)
    text = json.dumps(table, indent=1)
    text = re.sub(
        r"\{\n\s+(\"name\".*?)\n\s+\}", lambda m: "{" + re.sub(r"\s*\n\s*", " ", m[1]) + "}", text, flags=re.S
    )
    if options.table is not None:
        options.table.write_text(text + "\n")
        sys.stdout.write("".join(f"{line}\n" for line in table.get("unchecked", []) + table["faults"]))
    else:
        sys.stdout.write(text + "\n")
    return 1 if table["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
