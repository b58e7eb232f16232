"""The kernels compile for GPUs that are not here: no spills, shared memory within the limit, tensor cores in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from cpn_kernels import offline, offline_cuda
from cpn_kernels.resources import SHARED_LIMIT, Resources


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
def test_kernels_of_a_training_step_compile(target: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "cpn_kernels.offline", "--target", str(target), "--common"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr[-4000:]
    table = json.loads(done.stdout)
    assert done.returncode == 0 and table["faults"] == []
    rows = {row["name"]: row for row in table["kernels"]}
    assert {name.partition("[")[0].partition(".")[0] for name in rows} == set(offline.SOURCES)
    if offline.unchecked():
        pytest.skip("; ".join(offline.unchecked()))
    assert all(row["registers"] > 0 and row["stack"] == 0 for row in rows.values())
    assert rows["pixel_correlation.forward[bf16, 192, 32]"]["tensor_core"] > 0
    assert rows["pixel_correlation.gradient[both, bf16, 192, 32]"]["tensor_core"] > 0


@pytest.mark.parametrize("name", ["kernel_resources.json", "kernel_resources_triton36.json"])
def test_the_tables_kept_are_of_the_kernels_as_they_are_launched(name: str, repository: Path) -> None:
    """Where this fails: `make check-kernels`, and again with the other Triton (benchmarks/README.md)."""
    table = json.loads((repository / "benchmarks" / "results" / name).read_text())
    # Triton 3.6 spills a little where a pixel's maps have 128 channels, and once in float32.
    spilled = [fault for fault in table["faults"] if "pixel_correlation." in fault and "spills registers" in fault]
    assert table["faults"] == (spilled if "triton36" in name else []) and table["unchecked"] == []
    for target in offline.TARGETS:
        found = [row["name"] for row in table["kernels"] if row["target"] == target]
        launched = [case.name for case in offline.cases(target)]
        assert found[: len(launched)] == launched
        assert {name.partition(".")[0] for name in found[len(launched) :]} == {"superpixels_cuda"}


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 86, 89, 90])
def test_cuda_sources_compile(target: int) -> None:
    if reason := offline_cuda.missing():
        pytest.skip(reason)
    rows = offline_cuda.compile_sources(target)
    assert len(rows) > 10 and len({row.name for row in rows}) == len(rows)  # SLIC's passes and those of connectivity
    assert all(row.registers and row.faults() == [] for row in rows)


@pytest.mark.skipif(bool(offline_cuda.missing()), reason=offline_cuda.missing() or "nvcc is there")
def test_a_cuda_kernel_that_spills_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        __global__ void spills(float* x, int n) {
          float held[64];
          for (int i = 0; i < 64; ++i) held[i] = x[i];
          for (int i = 0; i < n; ++i) held[(i * 7) % 64] += x[i];
          for (int i = 0; i < 64; ++i) x[i] = held[i];
        }"""
    (tmp_path / "wrong.cu").write_text(code)
    monkeypatch.setattr(offline_cuda, "SOURCES", tmp_path)
    (found,) = offline_cuda.compile_sources(90)
    assert found.stack and "spills registers" in found.faults()[0]
    (tmp_path / "wrong.cu").write_text("__global__ void broken( {")
    with pytest.raises(RuntimeError, match=r"nvcc refuses wrong\.cu for sm_90"):
        offline_cuda.compile_sources(90)


def row(**changed: int | None) -> Resources:
    values = {"warps": 4, "registers": 90, "stack": 0, "shared": 1024, "tensor_core": 3}
    return Resources("kernel", 86, **(values | changed))


def test_faults_are_named() -> None:
    assert row().faults(needs_tensor_core=True) == []
    assert row(tensor_core=0).faults() == []
    assert row(tensor_core=0).faults(True) == ["kernel on sm_86: no tensor-core instruction"]
    assert row(stack=8).faults() == ["kernel on sm_86: 8 bytes of stack: it spills registers"]
    assert row(shared=101_376).faults() == []
    assert row(shared=101_377).faults() == ["kernel on sm_86: 101377 bytes of shared memory; sm_86 grants 101376"]


def test_a_missing_tool_is_told_and_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "tool", lambda name: None)
    monkeypatch.setattr(offline_cuda.shutil, "which", lambda name: None)
    assert offline.unchecked() == [
        "cuobjdump is missing: registers and spills not checked",
        "nvdisasm is missing: tensor-core instructions not checked",
        "nvcc is missing: kernels/csrc/*.cu were not compiled",
    ]
    assert row(registers=None, stack=None, tensor_core=None).faults(True) == []


def test_every_target_has_a_limit() -> None:
    assert set(SHARED_LIMIT) == set(offline.TARGETS)


@pytest.mark.parametrize("channels_last", [True, False])
def test_no_stride_of_32_bits_is_doubled(channels_last: bool) -> None:
    """Up to 2^31 - 1 elements of a view are launched with an int32 stride, whose double would not fit."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cpn_kernels.ops.cp_triplet.offline_cases import offline_cases

    if triton.knobs.runtime.interpret:
        pytest.skip("interpreted kernels are not compiled")
    case = next(case for case in offline_cases((9, 0)) if case.constants["CHANNELS_LAST"] == channels_last)
    signature = {name: case.types.get(name, "constexpr") for name in case.kernel.arg_names} | {"view_stride": "i32"}
    source = ASTSource(case.kernel, signature, constexprs=case.constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=case.options)
    uses = [line for line in compiled.asm["ttir"].splitlines() if "%view_stride" in line and "tt.func" not in line]
    assert uses
    assert not [line for line in uses if "arith." in line and "arith.ext" not in line], uses
