"""The steps of `make gpu-check` for one part: what builds the native library, tests, benchmarks, trains."""

from __future__ import annotations

import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.gpu.steps import Step

ROOT = Path(__file__).resolve().parents[2]

COMPILERS = 8
"""Processes that compile and run the kernels' tests side by side."""

NVCC = """
import os, shutil, sys
asked = os.environ.get("CUDACXX") or "nvcc"
beside = os.path.join(os.environ.get("CUDA_PATH", "/usr/local/cuda"), "bin", "nvcc")
if shutil.which(asked) is None and not os.path.exists(beside):
    sys.exit(f"{asked} is not there: without it the CUDA half of the native library is not built, and its superpixels "
             "would be left out of every figure; install the CUDA toolkit, or name its nvcc in PATH or CUDACXX")
"""
"""Says in words what is missing, before minutes of a rented GPU go into the rest."""

CUDA_HALF = """
import sys
from cpn_kernels import native_library
if not native_library.has_cuda():
    sys.exit(native_library.missing() or "the native library was built without its CUDA half; see configure.log")
"""


def build_steps(out: Path, capability: str) -> list[Step]:
    """cmake straight into OUT/build, for this GPU alone."""
    cmake = shutil.which("cmake") or "cmake"
    architecture = capability.replace(".", "")
    configure = [cmake, "-S", str(ROOT), "-B", str(out / "build"), "-DCMAKE_BUILD_TYPE=Release"]
    return [
        Step("nvcc", [sys.executable, "-c", NVCC], 30, needed=True),
        Step("configure", [*configure, f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"], 60, needed=True),
        Step("build", [cmake, "--build", str(out / "build"), "--parallel"], 180, needed=True),
        Step("cuda-half", [sys.executable, "-c", CUDA_HALF], 60, needed=True),
    ]


def gpu_test_files(folder: str) -> list[str]:
    """Files under `folder` with a test marked `gpu`, those of kernels first: other files may import what is not here.

    A conftest may mark its whole folder.
    """
    marking = "mark.gpu"
    whole = {
        file.parent for file in (ROOT / folder).rglob("conftest.py") if marking in file.read_text(encoding="utf-8")
    }
    files = [
        file
        for file in (ROOT / folder).rglob("test_*.py")
        if whole & set(file.parents) or marking in file.read_text(encoding="utf-8")
    ]
    files.sort(key=lambda file: ("cpn_kernels" not in file.parts, file))
    return [str(file.relative_to(ROOT)) for file in files]


def part_steps(part: str, out: Path, data: str | None, weights: Path | None, backbone: str) -> list[Step]:
    """The steps of a part, the most telling first."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-p", "benchmarks.gpu.outcomes", "-p", "no:cacheprovider", "-v", "--tb=short"]
    outcomes = out / "tests.jsonl"
    if part == "kernels":
        # What cannot be collected here is one failed line, and keeps nothing else from running.
        spread = ["--continue-on-collection-errors", "-n", str(COMPILERS), "--dist", "worksteal"]
        return [Step("tests", [*pytest, *spread, "-m", "gpu", *gpu_test_files("tests")], 400, outcomes)]
    if part == "bench":
        recorded = [*pytest, "--record", "--results", str(out)]
        figures = out / f"gpu-torch{version('torch').partition('+')[0]}.json"
        files = gpu_test_files("benchmarks")
        return [
            *(Step(Path(file).stem, [*recorded, "-m", "gpu", file], 150, figures) for file in files),
            Step("waterfall", [*recorded, "benchmarks/test_waterfall.py"], 300, figures),
            Step("throughput", [*recorded, "benchmarks/test_throughput.py"], 300, figures),
        ]
    timed = out / "train_step.json"
    run = out / f"run-{int(time.time())}"
    source = data or f"demo:{out / 'demo'}"
    cpn = [python, "-m", "cpn_fast.cli"]
    given = ["--weights", str(weights)] if weights else []
    crop = [] if data else ["--crop", "112", "--patch.segments", "40"]
    # As a user trains, precision and loaders left to the machine; compilation, the slowest to begin, has its own step.
    train = [
        *cpn, "train", "--data", source, "--method", "cpn", "--backbone", backbone, *given, *crop, "--max-steps", "60",
        "--eval-every", "0",
    ]  # fmt: skip
    eager = [*train, "--options.warm-up", "0", "--compile", "off", "--output", str(run)]
    steps = [
        Step("step", [python, "-m", "benchmarks.gpu.train_step", str(timed)], 150, timed),
        Step("train", eager, 120),
        Step("label", [*cpn, "label", str(run), "--data", source, "--split", "val", "--output", f"{run}-masks"], 60),
        Step("evaluate", [*cpn, "evaluate", f"{run}-masks", "--data", source, "--split", "val"], 60),
        Step("compiled-step", [python, "-m", "benchmarks.gpu.train_step", str(out / "compiled_step.json"), "--compile"],
             240, out / "compiled_step.json"),
        # Every default: the step tried out before the warm-up, and --compile auto with what it says where it fails.
        Step("train-defaults", [*train, "--output", f"{run}-defaults"], 240),
    ]  # fmt: skip
    if data is None:
        demo = "from cpn_fast.data.sources.demo import generate_demo; import sys; "
        demo += "generate_demo(sys.argv[1], train=160, val=24, pretrain=1)"
        steps.insert(1, Step("demo-data", [python, "-c", demo, str(out / "demo")], 90))
    return steps
