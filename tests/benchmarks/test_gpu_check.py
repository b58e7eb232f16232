"""`make gpu-check` without a GPU: what it says, its deadlines, and a record that is up to date at every moment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import waterfall
from benchmarks.gpu import check, packages, parts
from benchmarks.gpu.steps import OUT_OF_TIME, Record, Step, read_figures, run_steps
from benchmarks.gpu.train_step import TrainStep
from cpn_fast.cam.options import parse
from cpn_fast.config.training import DeviceOptions
from tests.making import user_environment


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(steps: list[Step], folder: Path, budget: float) -> tuple[bool, dict]:
    record = Record(folder / "part.json", {"part": "stub"})
    good = run_steps(steps, record, budget, os.environ, folder)
    return good, json.loads((folder / "part.json").read_text())["steps"]


def make(repository: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    return subprocess.run(
        [make, "gpu-check", f"PYTHON={sys.executable}", *argv],
        cwd=repository, env=user_environment(), capture_output=True, text=True,
    )  # fmt: skip


NO_GPU = "gpu-check needs an NVIDIA GPU and found none"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("part", list(packages.PARTS))
def test_without_a_gpu_it_says_so_and_fails(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--part", part, "--out", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err
    assert NO_GPU in said and torch.__version__ in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_make_fails_too(repository: Path, tmp_path: Path) -> None:
    done = make(repository, "PART=train", f"OUT={tmp_path / 'out'}")
    assert done.returncode != 0 and NO_GPU in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [["PART=foo"], []])
def test_an_unknown_part_is_named(given: list[str], repository: Path) -> None:
    done = make(repository, *given)
    named = given[0].partition("=")[2] if given else ""
    assert done.returncode != 0
    assert f"PART is {named!r}; expected one of kernels, bench, train, all" in done.stderr


def test_missing_packages_come_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(packages.PARTS, "bench", {"torch": "torch", "no_such_module": "some-distribution"})
    monkeypatch.setattr(check, "no_gpu", lambda: pytest.fail("asked before the packages were there"))
    assert check.main(["--part", "bench"]) == 2
    said = capsys.readouterr().err
    assert "does not have: some-distribution" in said and "PYTHONPATH=wheels" in said


@pytest.mark.parametrize("part", ["kernels", "bench", "train"])
def test_all_that_a_part_imports_is_looked_for(part: str, repository: Path) -> None:
    """Top-level imports of what a part runs are in its list, the standard library, or this repository."""
    folders = {"kernels": ["tests"], "bench": ["benchmarks"], "train": []}[part]
    files = [repository / name for folder in folders for name in parts.gpu_test_files(folder)]
    files += [*(repository / "kernels").rglob("*.py"), *(repository / "benchmarks" / "gpu").glob("*.py")]
    if part == "train":  # which runs no pytest
        files.remove(repository / "benchmarks" / "gpu" / "outcomes.py")
    if part != "kernels":
        files += (repository / "cpn_fast").rglob("*.py")
    known = {*sys.stdlib_module_names, "cpn_fast", "cpn_kernels", "cpn_export", "benchmarks", *packages.PARTS[part]}
    for file in files:
        # Sources of optional formats are imported where they are opened; what is indented is asked for there.
        found = re.findall(r"^(?:from|import) ([A-Za-z_]\w*)", file.read_text(), re.MULTILINE)
        assert set(found) <= known, f"{file}: {set(found) - known}"


def test_steps_run_in_turn_and_are_recorded(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    steps = [
        Step("first", python(f"open({str(figures)!r}, 'w').write('{{\"ms\": 3}}')"), 20, figures),
        Step("second", python("print('what went wrong'); raise SystemExit(3)"), 20),
        Step("third", python("pass"), 20),
    ]
    good, found = run(steps, tmp_path, budget=60)
    assert not good
    assert [found[name]["outcome"] for name in found] == ["passed", "failed: exit status 3", "passed"]
    assert found["first"]["figures"] == {"ms": 3}
    assert "what went wrong" in (tmp_path / "second.log").read_text()
    assert run([steps[0], steps[2]], tmp_path, budget=60)[0]


def test_nothing_runs_behind_a_needed_step_that_failed(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    steps = [
        Step("build", python("raise SystemExit(1)"), 20, needed=True),
        Step("tests", python(f"open({str(touched)!r}, 'w')"), 20),
    ]
    good, found = run(steps, tmp_path, budget=60)
    assert not good and not touched.exists()
    assert found["tests"]["outcome"] == "not run: build failed"


def test_a_step_ends_at_its_deadline_with_all_it_started(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    child = f"import time; open({str(lines)!r}, 'a').write('{{\"a\": 1}}\\n{{\"b\"'); time.sleep(60)"
    steps = [
        Step("slow", python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"), 3, lines),
        Step("next", python("pass"), 20),
    ]
    started = time.monotonic()
    good, found = run(steps, tmp_path, budget=60)
    assert not good and time.monotonic() - started < 20
    assert found["slow"]["outcome"] == "ended at its deadline of 3 s"
    assert found["slow"]["figures"] == [{"a": 1}], "a line that was cut is none"
    assert found["next"]["outcome"] == "passed"


def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.steps.LEAST_SECONDS", 0.5)
    steps = [Step("long", python("import time; time.sleep(60)"), 50), Step("late", python("pass"), 20)]
    good, found = run(steps, tmp_path, budget=1)
    assert not good
    assert found["long"]["outcome"].startswith("ended at its deadline")
    assert found["late"]["outcome"] == OUT_OF_TIME


def test_the_record_is_whole_while_a_step_runs(tmp_path: Path) -> None:
    """A second process reads the record that this one keeps while its step is running: figures are there already."""
    figures, seen = tmp_path / "figures.json", tmp_path / "seen.json"
    record = tmp_path / "part.json"
    code = f"""
import json, pathlib, time
pathlib.Path({str(figures)!r}).write_text('{{"images": 1}}')
for _ in range(100):
    time.sleep(0.1)
    step = json.loads(pathlib.Path({str(record)!r}).read_text())["steps"]["running"]
    if "figures" in step:
        pathlib.Path({str(seen)!r}).write_text(json.dumps(step))
        break
"""
    good, found = run([Step("running", python(code), 30, figures)], tmp_path, budget=60)
    assert good and found["running"]["outcome"] == "passed"
    assert json.loads(seen.read_text())["outcome"] == "running"
    assert json.loads(seen.read_text())["figures"] == {"images": 1}


def test_every_test_leaves_its_line(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\n\ndef test_good(): pass\n\ndef test_bad(): assert 1 == 2, 'numbers'\n\n"
        "@pytest.mark.skip(reason='not today')\ndef test_left_out(): pass\n"
    )
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    lines = tmp_path / "tests.jsonl"
    argv = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.outcomes", "-q", "--rootdir", str(tmp_path)]
    subprocess.run(
        [*argv, "--continue-on-collection-errors", "-c", os.devnull, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"CPN_TEST_OUTCOMES": str(lines), "PYTHONPATH": str(repository)},
        capture_output=True,
    )
    found = {line["test"].rpartition("::")[2]: line for line in read_figures(lines)}
    assert {name: line["outcome"] for name, line in found.items()} == {
        "test_broken.py": "failed", "test_good": "passed", "test_bad": "failed", "test_left_out": "skipped",
    }  # fmt: skip
    assert "numbers" in found["test_bad"]["reason"] or "1 == 2" in found["test_bad"]["reason"]
    assert "not today" in found["test_left_out"]["reason"]


def test_the_parts_are_planned(tmp_path: Path) -> None:
    kernels = parts.part_steps("kernels", tmp_path, None, None, "resnet38_tiny")
    assert any("test_cuda_operators.py" in word for word in kernels[0].argv)
    bench = {step.name for step in parts.part_steps("bench", tmp_path, None, None, "resnet38_tiny")}
    assert {"test_pixel_correlation", "test_cp_loss", "test_cp_triplet", "test_superpixels", "waterfall"} <= bench
    train = parts.part_steps("train", tmp_path, "voc:x", Path("w.safetensors"), "mobilenet_v2")
    assert [step.name for step in train] == [
        "step", "train", "label", "evaluate", "compiled-step", "train-defaults",
    ]  # fmt: skip
    assert "voc:x" in train[1].argv and "w.safetensors" in train[1].argv
    assert check.BUDGET < 8 * 60


def test_the_kernels_part_runs_the_triton_folder_first_and_side_by_side(tmp_path: Path, repository: Path) -> None:
    (tests,) = parts.part_steps("kernels", tmp_path, None, None, "resnet38_tiny")
    files = [word for word in tests.argv if word.endswith(".py")]
    triton = sorted((repository / "tests" / "cpn_kernels" / "ops" / "triton").glob("test_*.py"))
    assert len(triton) >= 5 and {str(file.relative_to(repository)) for file in triton} <= set(files)
    kinds = ["cpn_kernels" in file for file in files]
    assert kinds == sorted(kinds, reverse=True) and not all(kinds), "kernels come first, the rest is there"
    assert "--continue-on-collection-errors" in tests.argv and tests.argv[tests.argv.index("-n") + 1] == "8"
    assert {"xdist", "tyro"} <= set(packages.PARTS["kernels"])


def test_the_trained_steps_have_a_cpn_step_among_them(tmp_path: Path) -> None:
    steps = {step.name: step for step in parts.part_steps("train", tmp_path, None, None, "resnet38_tiny")}
    train = steps["train"].argv
    assert train[train.index("--options.warm-up") + 1] == "0"


def test_the_trained_steps_take_what_a_user_gets(tmp_path: Path) -> None:
    """Nothing that a GPU decides by itself is given, but for compilation, which is a step of its own at the end."""
    steps = parts.part_steps("train", tmp_path, None, None, "resnet38_tiny")
    trained = {step.name: [str(word) for word in step.argv] for step in steps if "train" in step.argv}
    assert list(trained) == ["train", "train-defaults"] and steps[-1].name == "train-defaults"
    for name, argv in trained.items():
        config = parse(argv[argv.index("train") + 1 :])
        assert (config.device, config.loop.max_steps) == (
            DeviceOptions(compile="off" if name == "train" else "auto"),
            60,
        )
    assert parse(trained["train-defaults"][4:]).options.warm_up > 0  # so that the step tried out is the first of CPN


def test_a_missing_nvcc_ends_the_part_with_its_reason(tmp_path: Path) -> None:
    nvcc = parts.build_steps(tmp_path, "9.0")[0]
    record = Record(tmp_path / "part.json", {})
    steps = [nvcc, Step("tests", python("pass"), 20)]
    bare = {"PATH": str(tmp_path), "CUDA_PATH": str(tmp_path)}
    assert not run_steps(steps, record, 60, bare, tmp_path)
    assert record.content["steps"]["tests"]["outcome"] == "not run: nvcc failed"
    assert "nvcc is not there" in (tmp_path / "nvcc.log").read_text()
    compiler = tmp_path / "nvcc"
    compiler.write_text("")
    compiler.chmod(0o755)
    assert run_steps(steps, record, 60, bare, tmp_path)


@pytest.mark.slow
def test_a_library_without_its_cuda_half_ends_the_part(tmp_path: Path, repository: Path) -> None:
    half = parts.build_steps(tmp_path, "9.0")[-1]
    without = os.environ | {"CPN_NATIVE_LIBRARY": "none", "PYTHONPATH": str(repository / "kernels")}
    assert half.needed and not run_steps([half], Record(tmp_path / "part.json", {}), 60, without, tmp_path)
    assert "CPN_NATIVE_LIBRARY is none" in (tmp_path / "cuda-half.log").read_text()


def test_the_waterfall_on_a_gpu_has_four_rows() -> None:
    every, few = ([row.name for row in waterfall.rows(cuda)] for cuda in (False, True))
    assert few == [name for name in every if name in few] and len(few) == 4
    assert (few[0], few[-1]) == (every[0], every[-1])


def test_one_step_of_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = parts.part_steps("bench", tmp_path, None, None, "resnet38_tiny")
    (chosen,) = check.only("waterfall", steps)
    assert chosen.limit == check.BUDGET and chosen.argv == next(s for s in steps if s.name == "waterfall").argv
    with pytest.raises(SystemExit):
        check.only("waterfal", steps)
    assert "ONLY is 'waterfal'; expected one of" in capsys.readouterr().err


def test_the_timed_step_steps_and_counts() -> None:
    step = TrainStep("cpu", "resnet38_tiny", crop=64)
    before = [parameter.detach().clone() for parameter in step.method.parameters() if parameter.requires_grad]
    counted = step.counted_tflop()
    assert counted > 0 and TrainStep("cpu", "resnet38_tiny", crop=128).counted_tflop() > 3 * counted
    losses = [float(step()) for _ in range(2)]
    after = [parameter for parameter in step.method.parameters() if parameter.requires_grad]
    assert all(loss == loss for loss in losses)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_nothing_but_benchmarks_imports_the_peers(repository: Path) -> None:
    folders = [repository / name for name in ("cpn_fast", "kernels", "export", "tests")]
    for file in (file for folder in folders for file in folder.rglob("*.py")):
        text = file.read_text()
        assert not re.search(r"^\s*(?:from|import) benchmarks\.peers", text, re.MULTILINE), file
    for package in ("cpn_fast", "kernels", "export"):
        for file in (repository / package).rglob("*.py"):
            assert not re.search(r"^\s*(?:from|import) benchmarks", file.read_text(), re.MULTILINE), file
