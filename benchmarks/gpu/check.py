"""`make gpu-check PYTHON=python3 PART=all|kernels|bench|train OUT=DIR`: no virtual environment, no network.

Looks first at what is there, builds the native library into OUT, then runs one part and writes OUT/PART.json as it
goes. At this point nothing of the project is imported, since its packages may be what is missing. PART=all is a first
quarter of an hour on a new GPU (`benchmarks.gpu.quarter`); called again with the same OUT it goes on where it was.
`--dry-run` takes the same steps on a machine without a GPU, each in a small form for the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import Record, Step, read_figures, run_steps

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 460.0
"""Seconds of a part, the build included: less than eight minutes."""

BASE = {"torch": "torch", "triton": "triton", "numpy": "numpy", "PIL": "pillow", "rich": "rich"}
"""Module: the distribution that brings it."""

RUNS = {
    "lightning": "lightning",
    "safetensors": "safetensors",
    "cv2": "opencv-python-headless",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "tyro": "tyro",
    "tensorboard": "tensorboard",
    "matplotlib": "matplotlib",
}
PARTS = {
    "kernels": {
        **BASE,
        "pytest": "pytest",
        "xdist": "pytest-xdist",
        "tyro": "tyro",
        "cv2": "opencv-python-headless",
        "scipy": "scipy",
    },
    "bench": {**BASE, **RUNS, "pytest": "pytest"},
    "train": {**BASE, **RUNS},
    "all": BASE,
}
"""What each part imports; of "all", a step that imports more is left out where that is missing."""

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


def missing(part: str) -> list[str]:
    """Distributions that the part needs and that are not there."""
    return [name for module, name in PARTS[part].items() if importlib.util.find_spec(module) is None]


def how_to_give(names: list[str]) -> str:
    """What to do about missing packages on a machine without a network."""
    listed = " ".join(names)
    return (
        f"gpu-check needs packages that {sys.executable} does not have: {', '.join(names)}.\n"
        "With a network: "
        f"{Path(sys.executable).name} -m pip install {listed}\n"
        "Without one, on another machine with the same Python version: "
        f"pip install --target wheels {listed}\n"
        "then bring the folder here and put it last: PYTHONPATH=wheels make gpu-check ...\n"
        "pytest, pytest-xdist and tyro are pure Python, with what they need a few MB: they can lie in the repository's "
        "folder."
    )


def no_gpu() -> str:
    """Why there is no GPU, as a sentence; empty where there is one."""
    import torch

    if torch.cuda.is_available():
        return ""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return (
        "gpu-check needs an NVIDIA GPU and found none: torch.cuda.is_available() is False "
        f"(torch {torch.__version__}, {built}). Nothing was run; run it on a machine with a GPU."
    )


def machine() -> dict[str, Any]:
    """GPU, driver and versions, for the record."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "lightning"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "cuda": torch.version.cuda,
        "nvcc": _first_line(["nvcc", "--version"], last=True),
        "commit": _commit(),
        **versions,
    }


def _commit() -> str | None:
    return _first_line(["git", "rev-parse", "HEAD"])


def _first_line(argv: list[str], last: bool = False) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[-1 if last else 0] if done.returncode == 0 and lines else None


def environment(out: Path, dry_run: bool = False) -> dict[str, str]:
    """The three packages before what the caller put on PYTHONPATH; caches and the library in OUT, but in a dry run."""
    paths = [ROOT, ROOT / "kernels", ROOT / "export", *filter(None, [os.environ.get("PYTHONPATH")])]
    library = out / "build" / "libcpn_native.so"
    return (
        os.environ
        | ({} if dry_run else {"CPN_NATIVE_LIBRARY": str(library)})
        | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "CPN_CACHE": str(out / "cache"),
            "TRITON_CACHE_DIR": str(out / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor"),
            "CPN_TEST_OUTCOMES": str(out / "tests.jsonl"),
            "PYTHONUNBUFFERED": "1",
        }
    )


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


def only(name: str, steps: list[Step]) -> list[Step]:
    """The step of that name, with the whole part's time.

    Raises:
        SystemExit: with code 2 where the part has no such step.
    """
    chosen = [replace(step, limit=BUDGET) for step in steps if step.name == name]
    if not chosen:
        names = ", ".join(step.name for step in steps)
        print(f"gpu-check: ONLY is {name!r}; expected one of {names}", file=sys.stderr)
        raise SystemExit(2)
    return chosen


def main(argv: list[str] | None = None) -> int:
    """Run one part; 0 if every step of it passed."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--part", default="")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--data", help="data of the real training run; default: generated scenes")
    parser.add_argument("--weights", type=Path, help="backbone weights of that run")
    parser.add_argument("--backbone", default="resnet38_tiny", help="backbone of that run")
    parser.add_argument("--only", help="one step of the part, by its name, which then has all the time")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together")
    parser.add_argument("--dry-run", action="store_true", help="PART=all in small forms for the CPU, without a GPU")
    given = parser.parse_args(argv)
    if given.part not in PARTS:
        print(f"gpu-check: PART is {given.part!r}; expected one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    absent = missing(given.part)
    if absent:
        print(how_to_give(absent), file=sys.stderr)
        return 2
    if given.dry_run and given.part != "all":
        print(f"gpu-check: --dry-run is of PART=all, found PART={given.part}", file=sys.stderr)
        return 2
    if not given.dry_run and (reason := no_gpu()):
        print(reason, file=sys.stderr)
        return 1
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = machine() if not given.dry_run else {"gpu": "no GPU (dry run)", "capability": "9.0", "commit": _commit()}
    name = f"{given.part}-dry" if given.dry_run else given.part
    record_path, budget = out / f"{name}.json", given.budget
    earlier = read_figures(record_path) if given.part == "all" else None
    if not earlier:
        (out / "tests.jsonl").unlink(missing_ok=True)
    record = Record(record_path, {"part": given.part, "machine": found, "budget_seconds": budget})
    if given.part == "all":
        from benchmarks.gpu import quarter

        steps = quarter.steps(out, found["capability"], given.dry_run)
        if given.dry_run:
            steps, budget = quarter.patient(steps), quarter.PATIENCE * budget
        steps = quarter.left(steps, record, earlier or {})
    else:
        steps = part_steps(given.part, out, given.data, given.weights, given.backbone)
    if given.only:
        steps = only(given.only, steps)
    if given.part != "all":
        steps = build_steps(out, found["capability"]) + steps
    print(f"gpu-check {given.part} on {found['gpu']}: {record.path}", flush=True)
    good = run_steps(steps, record, budget, environment(out, given.dry_run), ROOT)
    record.content["passed"] = good
    record.write()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
