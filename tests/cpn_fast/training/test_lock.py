"""A run folder is written by one training at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpn_fast.cam.options import parse
from cpn_fast.cam.task import run_train
from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import locked


def words(small_demo: Path, output: Path) -> list[str]:
    tiny = ["--method", "cam", "--patch", "grid", "--backbone", "resnet38_tiny", "--crop", "64", "--batch-size", "4"]
    short = ["--epochs", "1", "--max-steps", "1", "--workers", "0", "--eval-every", "0"]
    return ["--data", f"demo:{small_demo}", "--output", str(output), *tiny, *short]


def test_a_second_training_is_refused_and_the_first_is_left_alone(small_demo: Path, tmp_path: Path) -> None:
    config = parse(words(small_demo, tmp_path / "run"))
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        with pytest.raises(DataError, match=r"run: .*is writing here"):
            run_train(config)
        left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == [".lock", "metrics.jsonl"]
    run = run_train(config)
    assert [record["step"] for record in run.records("step")] == [1] and not (run.path / ".lock").exists()


def test_a_training_that_cannot_begin_leaves_no_folder(small_demo: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'nowhere'"):
        run_train(parse([*words(small_demo, tmp_path / "run"), "--split", "nowhere"]))
    assert not (tmp_path / "run").exists()
