"""PART=all: what a new GPU is asked in its first quarter of an hour, the most telling first, every answer kept at once.

The native library is built in the background of what does without it. What a step prints lies in OUT/STEP.log, its
figures in OUT/all.json. A second call goes on behind what has passed, so that a quarter of an hour may fall into two.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu.packages import missing
from benchmarks.gpu.parts import COMPILERS, ROOT, build_steps, gpu_test_files
from benchmarks.gpu.steps import Record, Step

BUILD = "build"

PATIENCE = 4.0
"""How many times its limit a step may take in a dry run, on cores that others may share."""

DEMO = """
import sys
from cpn_fast.data.sources.demo import generate_demo
generate_demo(sys.argv[1], train=int(sys.argv[2]), val=int(sys.argv[3]), pretrain=1)
"""


def steps(out: Path, capability: str, dry: bool) -> list[Step]:
    """The steps in their order, with their limits.

    Args:
        out: folder of records, logs and caches.
        capability: of the GPU, such as "9.0".
        dry: each in a small form for the CPU; names, order and limits are the same.
    """
    python, alone = sys.executable, {"CPN_NATIVE_LIBRARY": "none"}

    def module(name: str, *words: object) -> list[str]:
        return [python, "-m", f"benchmarks.gpu.{name}", *map(str, words)]

    small, one, on_cpu = (["--interpreted"], ["--only", "patch_crop"], ["--on-cpu"]) if dry else ([], [], [])
    figures = {name: out / f"{name}.json" for name in ("smoke", "step", "compiled-step", "device-ms")}
    planned = [
        Step(BUILD, module("quarter", out, capability, *(["--dry-run"] if dry else [])), 240, background=True),
        Step("smoke", module("smoke", figures["smoke"], *small), 60, figures["smoke"], environment=alone),
        Step("step", module("train_step", figures["step"], "--profile", *on_cpu), 100, figures["step"],
             environment=alone),
        Step("compiled-step", module("train_step", figures["compiled-step"], "--compile", "--profile", *on_cpu), 150,
             figures["compiled-step"], environment=alone),
        *_tests(out, dry),
        *_training(out, dry),
        Step("device-ms", module("smoke", figures["device-ms"], "--time", *small, *one), 60, figures["device-ms"],
             environment=alone),
        *_benchmarks(out, dry),
    ]  # fmt: skip
    groups = {"tests": "kernels", "bench": "bench", "waterfall": "bench"} | dict.fromkeys(
        ("demo-data", "train", "label", "evaluate", "step", "compiled-step"), "train"
    )
    absent = {part: missing(part) for part in {*groups.values()}}
    return [
        replace(step, lacks=f"not run: lacks {', '.join(absent[groups[step.name]])}")
        if step.name in groups and absent[groups[step.name]]
        else step
        for step in planned
    ]


def patient(planned: Sequence[Step]) -> list[Step]:
    """The steps with the limits of a dry run."""
    return [replace(step, limit=PATIENCE * step.limit) for step in planned]


PYTEST = [
    sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.outcomes", "-p", "no:cacheprovider", "-v", "--tb=short",
]  # fmt: skip


def _tests(out: Path, dry: bool) -> list[Step]:
    """The tests marked `gpu`; without a GPU each is collected and says that it is left out."""
    spread = [] if dry else ["-n", str(COMPILERS), "--dist", "worksteal"]
    argv = [*PYTEST, "--continue-on-collection-errors", *spread, "-m", "gpu", *gpu_test_files("tests")]
    return [Step("tests", argv, 220, out / "tests.jsonl", needs=BUILD)]


def _training(out: Path, dry: bool) -> list[Step]:
    """A training as a user starts it, but for the warm-up, then its masks and their score."""
    run, data = out / "run", f"demo:{out / 'demo'}"
    cpn = [sys.executable, "-m", "cpn_fast.cli"]
    crop, images, few = ("32", "6", ["--accelerator", "cpu", "--compile", "off"]) if dry else ("112", "160", [])
    steps = "2" if dry else "60"
    train = [
        *cpn, "train", "--data", data, "--method", "cpn", "--backbone", "resnet38_tiny", "--crop", crop,
        "--patch.segments", "40", "--options.warm-up", "0", "--max-steps", steps, "--eval-every", "0", *few,
        "--output", str(run),
    ]  # fmt: skip
    # A step that is begun anew, behind one that was ended at its deadline, finds nothing of it.
    fresh = "import shutil, subprocess, sys; shutil.rmtree(sys.argv[1], True); sys.exit(subprocess.call(sys.argv[2:]))"
    return [
        Step("demo-data", [sys.executable, "-c", DEMO, str(out / "demo"), images, "2" if dry else "24"], 40),
        Step("train", [sys.executable, "-c", fresh, str(run), *train], 150, run / "metrics.jsonl", needs=BUILD),
        Step("label", [*cpn, "label", str(run), "--data", data, "--split", "val", "--output", f"{run}-masks"], 50,
             needs=BUILD),
        Step("evaluate", [*cpn, "evaluate", f"{run}-masks", "--data", data, "--split", "val"], 40, needs=BUILD),
    ]  # fmt: skip


def _benchmarks(out: Path, dry: bool) -> list[Step]:
    """Operators against their peers, a round each, and the waterfall; without a GPU one of the CPU's benchmarks."""
    recorded = [*PYTEST, "--record", "--results", str(out)]
    kind = "cpu" if dry else "gpu"
    figures = out / f"{kind}-torch{version('torch').partition('+')[0]}.json"
    chosen = ["-k", "native", "benchmarks/test_cp_triplet.py"] if dry else ["-m", "gpu", *gpu_test_files("benchmarks")]
    checked = ["-k", "check_sees"] if dry else []
    return [
        Step("bench", [*recorded, "--quick", *chosen], 150, figures, needs=BUILD),
        Step("waterfall", [*recorded, *checked, "benchmarks/test_waterfall.py"], 200, figures, needs=BUILD),
    ]


def left(planned: Sequence[Step], record: Record, earlier: Mapping[str, Any]) -> list[Step]:
    """The steps that an earlier call on the same machine and commit has not passed; what it found of the others stays.

    Args:
        planned: all of them.
        record: of this call.
        earlier: content of the record that the earlier one left; {} without.
    """
    if earlier.get("machine") != record.content["machine"]:
        return list(planned)
    passed = {name: entry for name, entry in earlier["steps"].items() if entry["outcome"] == "passed"}
    record.content["steps"] = passed
    record.write()
    return [step for step in planned if step.name not in passed]


def build(out: Path, capability: str, dry: bool) -> int:
    """Build the native library, one command after another; without a GPU its CPU half is configured alone."""
    commands = build_steps(out, capability)
    if dry:
        commands = [step for step in commands if step.name == "configure"]
        commands = [replace(step, argv=[*step.argv, "-DCPN_CUDA=OFF"]) for step in commands]
    for step in commands:
        print(f"{step.name}:", flush=True)
        status = subprocess.run(step.argv, cwd=ROOT).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]), sys.argv[2], "--dry-run" in sys.argv))
