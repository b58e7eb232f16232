"""`make gpu-check PART=all`, a new GPU's first quarter of an hour: its order, what it keeps, and its dry run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import check, packages, parts, quarter, smoke
from benchmarks.gpu.steps import Record, Step, run_steps
from cpn_fast.cam.options import parse
from cpn_fast.config.training import DeviceOptions

ORDER = [
    "build", "smoke", "step", "compiled-step", "tests", "demo-data", "train", "label", "evaluate", "device-ms", "bench",
    "waterfall",
]  # fmt: skip


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(steps: list[Step], folder: Path, budget: float = 60) -> tuple[bool, dict[str, Any]]:
    good = run_steps(steps, Record(folder / "part.json", {}), budget, os.environ, folder)
    return good, json.loads((folder / "part.json").read_text())["steps"]


def test_the_dry_run_takes_the_same_steps_with_the_same_limits(tmp_path: Path) -> None:
    real, dry = (quarter.steps(tmp_path, "9.0", form) for form in (False, True))
    assert [step.name for step in real] == ORDER
    for one, other in zip(real, dry, strict=True):
        assert (one.name, one.limit, one.needs, one.background) == (
            other.name,
            other.limit,
            other.needs,
            other.background,
        )
        if one.name not in ("bench", "waterfall"):  # whose file is named by the device
            assert one.figures == other.figures
        modules = [step.argv[step.argv.index("-m") + 1] for step in (one, other) if "-m" in step.argv[:3]]
        assert all(importlib.util.find_spec(module) for module in modules) and len({*modules}) <= 1
    assert [step.limit * quarter.PATIENCE for step in dry] == [step.limit for step in quarter.patient(dry)]
    assert sum(step.limit for step in real if step.name in ORDER[:4]) < check.BUDGET + 240  # what a first call reaches


def test_the_training_takes_what_a_user_gets(tmp_path: Path) -> None:
    argv = [str(word) for step in quarter.steps(tmp_path, "9.0", False) if step.name == "train" for word in step.argv]
    config = parse(argv[argv.index("train") + 1 :])
    assert config.device == DeviceOptions() and config.options.warm_up == 0 and config.method == "cpn"


def test_what_lacks_a_package_is_left_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.PARTS, "kernels", {"no_such_module": "some-distribution"})
    steps = {step.name: step.lacks for step in quarter.steps(tmp_path, "9.0", True)}
    assert steps.pop("tests") == "not run: lacks some-distribution" and not any(steps.values())
    good, found = run(
        [Step("tests", python("pass"), 9, lacks="not run: lacks x"), Step("y", python("pass"), 9)], tmp_path
    )
    assert not good and [entry["outcome"] for entry in found.values()] == ["not run: lacks x", "passed"]


def test_the_smoke_needs_no_more_than_the_base() -> None:
    """In a process where whatever else is installed cannot be imported."""
    code = f"""
import sys
for name in {sorted({*packages.RUNS, "pytest", "xdist"})!r}:
    sys.modules[name] = None
from benchmarks.gpu import smoke
for make in smoke.PROBES.values():
    make(smoke.Inputs("cpu", smoke.TINY))
"""
    done = subprocess.run(python(code), capture_output=True, text=True, cwd=parts.ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_background_step_runs_beside_the_others_and_before_those_that_need_it(tmp_path: Path) -> None:
    """The first waits for what the second writes: one after the other they would not end."""
    begun, built, seen = (tmp_path / name for name in ("begun", "built", "seen"))
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(begun)!r}).exists(): time.sleep(0.05)\n"
    steps = [
        Step("build", python(f"{wait}open({str(built)!r}, 'w')"), 40, background=True),
        Step("beside", python(f"open({str(begun)!r}, 'w')"), 40),
        Step("long", python("import time; time.sleep(4)"), 40),
        Step("after", python(f"import os; open({str(seen)!r}, 'w').write(str(os.path.exists({str(built)!r})))"), 40,
             needs="build"),
    ]  # fmt: skip
    good, found = run(steps, tmp_path)
    assert good and {name: entry["outcome"] for name, entry in found.items()} == dict.fromkeys(
        ("build", "beside", "long", "after"), "passed"
    )
    assert found["build"]["seconds"] < found["beside"]["seconds"] + found["long"]["seconds"], "until it ended"
    assert seen.read_text() == "True"


def test_a_background_step_that_fails_takes_along_what_needs_it_alone(tmp_path: Path) -> None:
    steps = [
        Step("build", python("raise SystemExit(3)"), 40, background=True),
        Step("needs", python("pass"), 40, needs="build"),
        Step("free", python("pass"), 40),
    ]
    good, found = run(steps, tmp_path)
    assert not good
    assert [found[step.name]["outcome"] for step in steps] == [
        "failed: exit status 3", "not run: build failed", "passed",
    ]  # fmt: skip


def test_a_background_step_ends_with_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.steps.LEAST_SECONDS", 0.1)
    steps = [
        Step("build", python("import time; time.sleep(60)"), 50, background=True),
        Step("short", python("pass"), 9),
    ]
    good, found = run(steps, tmp_path, budget=4)
    assert not good and found["build"]["outcome"].startswith("ended at its deadline")
    assert found["build"]["seconds"] < 30 and found["short"]["outcome"] == "passed"


def test_a_second_call_goes_on_behind_what_passed(tmp_path: Path) -> None:
    steps = [Step(name, python("pass"), 9) for name in ("one", "two", "three")]
    entries = {"one": {"outcome": "passed", "figures": 1}, "two": {"outcome": "failed: exit status 1"}}
    machine = {"gpu": "H200", "commit": "abc"}
    record = Record(tmp_path / "all.json", {"machine": machine})
    assert [step.name for step in quarter.left(steps, record, {"machine": machine, "steps": entries})] == [
        "two",
        "three",
    ]
    assert json.loads((tmp_path / "all.json").read_text())["steps"] == {"one": entries["one"]}
    other = Record(tmp_path / "other.json", {"machine": machine | {"commit": "def"}})
    assert quarter.left(steps, other, {"machine": machine, "steps": entries}) == steps
    assert quarter.left(steps, other, {}) == steps


def test_a_dry_run_is_of_the_whole_and_needs_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--part", "bench", "--dry-run", "--out", str(tmp_path / "out")]) == 2
    assert "--dry-run is of PART=all, found PART=bench" in capsys.readouterr().err
    assert check.main(["--part", "all", "--dry-run", "--only", "demo-data", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "all-dry.json").read_text())
    assert record["passed"] and record["steps"]["demo-data"]["outcome"] == "passed"
    assert len(list((tmp_path / "out" / "demo").rglob("*.jpg"))) >= 8


def test_the_smoke_sees_a_wrong_kernel_and_one_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = torch.tensor([1.0, -3.0])

    def probe(found: torch.Tensor) -> smoke.Probe:
        return smoke.Probe(lambda: [found], lambda: [good.double()], 1e-3)

    def raises(inputs: smoke.Inputs) -> smoke.Probe:
        raise RuntimeError("no such kernel")

    made = {"right": good + 1e-4, "wrong": good + 0.1, "nan": torch.tensor([1.0, float("nan")])}
    probes = {name: lambda inputs, found=found: probe(found) for name, found in made.items()} | {"r": raises}
    monkeypatch.setattr(smoke, "PROBES", probes)
    monkeypatch.setattr("cpn_kernels.backend.triton_ready", lambda: True)
    assert smoke.main([str(tmp_path / "figures.json")]) == 1
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [entry["passed"] for entry in found.values()] == [True, False, False, False]
    assert found["wrong"]["largest_error"] == pytest.approx(0.1 * 2**0.5 / 10**0.5, rel=1e-3)
    assert found["r"]["error"] == "RuntimeError: no such kernel"


def test_the_smoke_compares_no_reference_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpn_kernels.backend.triton_ready", lambda: False)
    assert smoke.main([str(tmp_path / "figures.json")]) == 1 and not (tmp_path / "figures.json").exists()


def test_every_operator_with_kernels_is_probed() -> None:
    from cpn_kernels.offline import SOURCES

    assert set(SOURCES) == set(smoke.PROBES)


@pytest.mark.slow
def test_the_dry_run_passes_and_every_step_leaves_its_record(tmp_path: Path) -> None:
    """All the way on the CPU: kernels in the interpreter, a training, its masks and their score."""
    assert check.main(["--part", "all", "--dry-run", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "all-dry.json").read_text())
    assert [*record["steps"]] == ORDER and record["passed"]
    for name, entry in record["steps"].items():
        assert entry["outcome"] == "passed" and (tmp_path / entry["log"]).is_file()
        assert "figures" in entry or name in ("build", "demo-data", "label", "evaluate"), name
    figures = {name: entry.get("figures") for name, entry in record["steps"].items()}
    assert set(figures["smoke"]) == set(smoke.PROBES)
    assert all(line["outcome"] == "skipped" for line in figures["tests"]) and len(figures["tests"]) > 100
    assert figures["step"]["profile"]["launches"] > 100 and figures["compiled-step"]["compiled"]
    assert [line["step"] for line in figures["train"] if line["kind"] == "step"] == [1, 2]
