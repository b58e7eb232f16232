"""config.json of a run: what an earlier version wrote opens, and what no version writes is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpn_fast.cli import main as cli
from cpn_fast.config.serialise import config_to_dict
from cpn_fast.config.training import (
    AffinityConfig,
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    OptimizerOptions,
    PatchOptions,
    SegmentConfig,
    SegmentLoop,
    TrainConfig,
)
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder

OLD = Path(__file__).parent / "written_by_0.1.0"
BEFORE_LOOP = Path(__file__).parent / "written_before_loop"
"""By the code in which epochs, seed and their like were fields of the config itself, not of its loop."""

BEFORE_CHOICES: Any = {"precision": "32-true", "compile": "off"}
"""Defaults of the versions in which nothing was left to the machine."""


def old_run(folder: Path, name: str, written: Path = OLD) -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(written / f"{name}.json", folder / "config.json")
    return RunFolder(folder)


def test_a_cam_run_of_0_1_0_opens(tmp_path: Path) -> None:
    run = old_run(tmp_path, "train")
    assert (run.classes, run.backend_version) == (("cat", "dog"), "native 1")
    assert run.config == TrainConfig(
        data="voc:VOC2012", output=Path("runs/photos"), preset="paper", backbone="mobilenet_v2",
        weights=Path("mobilenet_v2.safetensors"), optimizer=OptimizerOptions(lr=0.02, momentum=0.9),
        loop=LoopOptions(epochs=16, max_steps=900),
        device=DeviceOptions(precision="bf16-mixed", workers=0, compile="off"), refine_lr_factor=10.0,
        augment=AugmentOptions(crop=256, resize=(250, 430)), patch=PatchOptions(segments=120, grid_sides=(28, 56)),
        options=MethodOptions(map_norm="max", cpcr_target="dense", ohem_pool="all", affinity="cosine",
                              pixel_classes="all",
                              tcp_target="pair", prcm="softmax", warm_up=0.0),
    )  # fmt: skip


def test_runs_of_the_other_trainings_of_0_1_0_open(tmp_path: Path) -> None:
    segment = old_run(tmp_path / "s", "segment").config_of(SegmentConfig)
    assert segment == SegmentConfig(
        data="voc:VOC2012", output=Path("runs/deeplab"), masks="runs/masks", backbone="resnet38_tiny", norms="frozen",
        optimizer=OptimizerOptions(lr=0.01, momentum=0.9), loop=SegmentLoop(epochs=20),
        device=DeviceOptions(workers=2, **BEFORE_CHOICES),
    )  # fmt: skip
    affinity = old_run(tmp_path / "a", "affinity").config_of(AffinityConfig)
    assert affinity == AffinityConfig(
        masks=Path("runs/masks"), output=Path("runs/affinity"), backbone="resnet38_tiny", beta=0.3,
        optimizer=OptimizerOptions(lr=0.01, momentum=0.9), loop=LoopOptions(epochs=8),
        device=DeviceOptions(workers=2, **BEFORE_CHOICES),
    )  # fmt: skip


def test_runs_from_before_the_loop_was_a_group_open_and_resume(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"epochs": 5, "max_steps": 70, "batch_size": 6, "seed": 9, "checkpoint_every": 40,
                            "log_every": 4, "eval_every": 2, "val_images": 12}  # fmt: skip
    expected = {
        "train": TrainConfig(
            data="voc:VOC2012", output=Path("runs/cam"), backbone="resnet50", pixel_masks=Path("runs/masks"),
            loop=LoopOptions(**loop), optimizer=OptimizerOptions(lr=0.02), options=MethodOptions(pixel_classes="all"),
            device=DeviceOptions(devices=2, workers=3, tf32=False, **BEFORE_CHOICES),
        ),
        "segment": SegmentConfig(
            data="voc:VOC2012", output=Path("runs/deeplab"), masks="runs/masks", loop=SegmentLoop(**loop),
            device=DeviceOptions(workers=3, **BEFORE_CHOICES),
        ),
        "affinity": AffinityConfig(
            masks=Path("runs/masks"), output=Path("runs/affinity"), data="voc:VOC2012", loop=LoopOptions(**loop),
            device=DeviceOptions(workers=3, **BEFORE_CHOICES),
        ),
    }  # fmt: skip
    for name, config in expected.items():
        run = old_run(tmp_path / name, name, BEFORE_LOOP)
        stored = json.loads(run.config_path.read_text())["config"]
        assert run.config_of(type(config)) == config, name
        newer: dict[str, Any] = {"cudnn_benchmark": True, "trial_step": "auto", "compile": "off", "timeout": 1800}
        newer |= {"micro_batch": None, "compile_mode": "auto", "augment_on": "host"}
        if name == "train":
            since = {"pixel_classes": "all", "teacher": None, "teacher_band": [0.3, 0.55], "teacher_pairs": True}
            newer["options"] = stored["options"] | since
        if name == "segment":
            newer |= {"only": None, "review": None}
        assert config_to_dict(run.config_of(type(config))) == stored | newer, "written as it was, and what came since"
    resumed = cli.parse("train", ["--resume", "--output", str(tmp_path / "train"), "--max-steps", "90"])
    loop |= {"max_steps": 90, "resume": True}
    assert resumed == replace(expected["train"], output=tmp_path / "train", loop=LoopOptions(**loop))


def changed(run: RunFolder, dotted: str, value: Any) -> None:
    content = json.loads(run.config_path.read_text())
    place = content
    *parents, last = dotted.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    run.config_path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config.batch_size", "eight", 'key config.batch_size: found "eight", expected a whole number'),
        ("config.batch_size", True, "key config.batch_size: found true, expected a whole number"),
        ("config.batch_size", 2.5, "key config.batch_size: found 2.5, expected a whole number"),
        (
            "config.method",
            "nonsense",
            "key config.method: found \"nonsense\", expected 'cam', 'seam', 'seam_prcm' or 'cpn'",
        ),
        ("config.options", 3, "key config.options: found 3, expected an object"),
        (
            "config.options.map_norm",
            "sum",
            "key config.options.map_norm: found \"sum\", expected 'minmax' or 'max'",
        ),
        ("config.options.mapnorm", "max", "key config.options.mapnorm: unknown setting"),
        ("config.lr", float("nan"), "key config.lr: found NaN, expected a finite number"),
        ("config.lr", "fast", 'key config.lr: found "fast", expected a number'),
        ("config.weights", 4, "key config.weights: found 4, expected a text"),
        ("config.channels_last", 1, "key config.channels_last: found 1, expected true or false"),
        ("config.patch.grid_sides", 7, "key config.patch.grid_sides: found 7, expected a list"),
        ("config.augment.resize", [1], "key config.augment.resize.1: not found"),
        ("config.augment.jitter", [0, 0, "a", 0], 'key config.augment.jitter.2: found "a", expected a number'),
        ("config", [1], "key config: found [1], expected an object"),
        ("classes", ["cat", 7], "key classes.1: found 7, expected a text"),
        ("classes", "cat", 'key classes: found "cat", expected a list'),
        ("classes", ["cat", "cat"], "key classes: expected at least one name, each once"),
        ("classes", [], "key classes: expected at least one name"),
        ("stage", "dance", "key stage: found \"dance\", expected 'train', 'affinity' or 'segment'"),
        ("stage", ["train"], 'key stage: found ["train"]'),
        ("format", 99, "key format: found 99, expected 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: Any, message: str, tmp_path: Path) -> None:
    run = old_run(tmp_path, "train")
    changed(run, key, value)
    with pytest.raises(DataError, match=re.escape(f"{run.config_path}: {message}")) as error:
        _ = run.config
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "found [], expected an object; restore the file, or train again"),
        ("{", "not JSON"),
        ("[" * 100_000, "lists or objects nested too deep"),
        ('{"classes": ["a"]}', "key config: not found"),
        ('{"classes": ["a"], "config": {}}', "key config.data: not found; expected a value (1 more such faults)"),
        ('{"seed": ' + "9" * 5000 + "}", "an integer of thousands of digits"),
    ],
)
def test_a_file_that_is_no_runs(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        _ = RunFolder(tmp_path).config


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"classes": ["caf\xe9"]}')
    with pytest.raises(DataError, match=r"config\.json, line 1: not UTF-8"):
        _ = RunFolder(tmp_path).classes


def test_commands_end_with_the_key_and_status_2(
    make_run: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    changed(run, "config.batch_size", "eight")
    assert cli.main(["export", str(run.path), "--output", str(tmp_path / "model.onnx")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'key config.batch_size: found "eight", expected a whole number' in error
