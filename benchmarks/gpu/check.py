"""`make gpu-check PYTHON=python3 PART=all|kernels|bench|train OUT=DIR`: no virtual environment, no network.

Looks first at what is there, builds the native library into OUT, then runs one part and writes OUT/PART.json as it
goes. At this point nothing of the project is imported, since its packages may be what is missing. PART=all is a first
quarter of an hour on a new GPU (`benchmarks.gpu.quarter`); called again with the same OUT it goes on where it was.
`--dry-run` takes the same steps on a machine without a GPU, each in a small form for the CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu import quarter
from benchmarks.gpu.packages import PARTS, how_to_give, missing
from benchmarks.gpu.parts import ROOT, build_steps, part_steps
from benchmarks.gpu.steps import Record, Step, read_figures, run_steps

BUDGET = 460.0
"""Seconds of a part, the build included: less than eight minutes."""


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
    for name in ("torch", "triton", "numpy", "lightning-fabric"):
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
