"""Every number of a training is asked for its range before anything is written."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from cpn_fast.affinity.command import run_affinity
from cpn_fast.cam.task import run_train
from cpn_fast.cli.main import main, parse
from cpn_fast.config.ranges import RANGES, check_ranges
from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import (
    TRAINING_CONFIGS,
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    OptimizerOptions,
    PatchOptions,
    TrainConfig,
)
from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import locked
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.task import run_segment_train

WORDS = [
    ("--crop 0", "--crop 0: expected 16..4096"),
    ("--crop -64", "--crop -64: expected 16..4096"),
    ("--crop 100000", "--crop 100000: expected 16..4096"),
    ("--lr nan", "--lr nan: expected a number above 0"),
    ("--lr -1", "--lr -1.0: expected"),
    ("--lr inf", "--lr inf: expected"),
    ("--epochs -1", "--epochs -1: expected at least 1"),
    ("--augment.resize 0 0", "--augment.resize 0 0: expected 1..16384, each"),
    ("--augment.resize 90 80", "--augment.resize 90 80: expected the shorter long side first"),
    ("--augment.jitter 0 0 0 0.7", "expected at most 0.5 for the hue"),
    ("--weight-decay nan", "--weight-decay nan: expected 0 or more, below 1"),
    ("--momentum 5", "--momentum 5.0: expected 0 or more, below 1"),
    ("--poly-power inf", "--poly-power inf: expected"),
    ("--val-images 0", "--val-images 0: expected"),
    ("--eval-every -1", "--eval-every -1: expected"),
]


@pytest.mark.parametrize(("words", "message"), WORDS)
@pytest.mark.parametrize("command", ["train", "segment train --masks truth", "train-affinity masks"])
def test_one_line_and_nothing_left_behind(
    command: str, words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = [*command.split(), "--data", "demo:", "--output", str(output), "--backbone", "resnet38_tiny"]
    assert main([*arguments, *words.split()]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0], told
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--patch.segments 0", "--patch.segments 0: expected 1..65535"),
        ("--patch.grid-sides 56 0", "--patch.grid-sides 56 0: expected"),
        ("--patch.compactness nan", "--patch.compactness nan: expected"),
        ("--options.ohem nan", "--options.ohem nan: expected above 0, at most 1"),
        ("--refine-lr-factor -1", "--refine-lr-factor -1.0: expected"),
    ],
)
def test_numbers_of_the_method(words: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse("train", ["--data", "demo:", "--output", "x", "--backbone", "resnet38_tiny", *words.split()])


def test_the_pipeline_asks_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--data", "demo:", "--output", str(tmp_path / "all"), "--backbone", "resnet38_tiny"]
    assert main([*arguments, "--train=--lr nan"]) == 2
    assert "--lr nan" in capsys.readouterr().err and not (tmp_path / "all").exists()


@pytest.mark.parametrize("stage", sorted(TRAINING_CONFIGS))
def test_no_number_is_without_a_range(stage: str) -> None:
    masks: Any = {} if stage == "train" else {"masks": Path("m")}
    numeric = {
        field.name
        for kind in (
            TRAINING_CONFIGS[stage],
            AugmentOptions,
            LoopOptions,
            OptimizerOptions,
            DeviceOptions,
            MethodOptions,
            PatchOptions,
        )
        for field in fields(kind)
        if any(word in str(field.type).replace("[", " ").replace(",", " ").split() for word in ("int", "float"))
    }
    values = flat(config_to_dict(TRAINING_CONFIGS[stage](data="", output=Path("x"), **masks)))
    missing = {name for name in values if name.rpartition(".")[2] in numeric} - RANGES.keys()
    assert len(numeric) > 20 and not missing
    check_ranges(TRAINING_CONFIGS[stage](data="", output=Path("x"), **masks))


def test_python_is_asked_as_well(tmp_path: Path) -> None:
    values: Any = {"output": tmp_path / "run", "optimizer": OptimizerOptions(lr=float("nan")), "data": "demo:"}
    for run, kind, more in (
        (run_train, "train", {}),
        (run_affinity, "affinity", {"masks": tmp_path}),
        (run_segment_train, "segment", {"masks": "truth"}),
    ):
        with pytest.raises(DataError, match="--lr nan"):
            run(TRAINING_CONFIGS[kind](backbone="resnet38_tiny", **values, **more))  # type: ignore[operator]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cuda_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    config = TrainConfig(
        data="demo:", output=tmp_path / "run", backbone="resnet38_tiny", device=DeviceOptions(accelerator="cuda")
    )
    with pytest.raises(DataError, match=r"--accelerator cuda: torch sees no GPU, expected 1; use --accelerator cpu"):
        run_train(config)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_written_says_so_first(tmp_path: Path) -> None:
    config = TrainConfig(data="demo:", output=tmp_path / "run", backbone="resnet38_tiny")
    RunFolder(config.output).create(config, ("one",))
    with locked(config.output), pytest.raises(DataError, match=rf"\(process {os.getpid()} on .*is writing here"):
        run_train(config)
    with pytest.raises(DataError, match="holds a run already"):
        run_train(config)
