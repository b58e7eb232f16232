"""`--jobs`: the figures of a table made in one process, from runs that were trained side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cpn_fast.cli.main import main as cli
from cpn_fast.data.loading.parallel import folder_lock
from cpn_fast.models.backbones import create_backbone
from cpn_fast.runs.checkpoint import load_checkpoint

TINY = ("--crop", "64", "--augment.resize", "64", "96", "--batch-size", "4", "--workers", "0", "--eval-every", "0",
        "--images", "1", "--scales", "1", "--patch", "grid")  # fmt: skip


@pytest.fixture(scope="module")
def arguments(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(create_backbone("resnet38_tiny").state_dict(), path)
    return ["reproduce", "table3", "--data", f"demo:{small_demo}", "--weights", str(path), *TINY]


def figures(folder: Path) -> list[object]:
    rows = json.loads((folder / "table3.json").read_text(encoding="utf-8"))["rows"]
    return [(row["name"], [seed["figures"] for seed in row["seeds"]]) for row in rows]


@pytest.mark.slow
def test_two_jobs_give_the_table_of_one(arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli([*arguments, "--max-steps", "1", "--output", str(one)]) == 0
    caplog.clear()
    with caplog.at_level("INFO"):
        assert cli([*arguments, "--max-steps", "1", "--jobs", "2", "--output", str(two)]) == 0
    assert figures(two) == figures(one) and len(figures(one)) == 4
    trained = [line for line in caplog.messages if line.startswith(("training", "resuming"))]
    assert trained == []  # in the table's own process
    logs = "".join((two / "jobs" / f"{number}.log").read_text(encoding="utf-8") for number in (1, 2))
    runs = {folder.name for folder in (two / "runs").iterdir()}
    assert runs == {folder.name for folder in (one / "runs").iterdir()}
    assert logs.count("this training will take") == len(runs) == 3


def test_a_run_that_another_holds_is_passed_over(tmp_path: Path) -> None:
    with folder_lock(tmp_path) as mine, folder_lock(tmp_path, wait=False) as its:
        assert mine and not its
    with folder_lock(tmp_path, wait=False) as free:
        assert free


@pytest.mark.slow
def test_a_stop_leaves_checkpoints_and_the_command_goes_on(arguments: list[str], tmp_path: Path) -> None:
    long = ["--epochs", "100", "--jobs", "2", "--output", str(tmp_path)]
    argv = [str(Path(sys.executable).parent / "cpn"), *arguments, *long]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
    runs = tmp_path / "runs"
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size > 0 for path in runs.glob("*/metrics.jsonl")) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # to the command alone: it passes it on
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith("interrupted\n")
    begun = list(runs.glob("*/metrics.jsonl"))
    assert len(begun) == 2
    for metrics in begun:
        steps = [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()]
        assert load_checkpoint(metrics.parent / "checkpoints" / "last.ckpt")["step"] == max(steps, default=0)
    assert not [line for line in os.popen("ps -eo args") if str(tmp_path) in line and "grep" not in line]


def test_bad_numbers(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli([*arguments, "--jobs", "0", "--output", str(tmp_path)]) == 2
    assert "--jobs 0: expected at least 1" in capsys.readouterr().err
    assert cli(["reproduce", "time", *arguments[2:4], "--jobs", "2", "--output", str(tmp_path)]) == 2
    assert "--jobs 2: time is made in one process" in capsys.readouterr().err
