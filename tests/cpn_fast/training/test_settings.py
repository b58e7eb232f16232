"""The command line of training, the run folder, and the process's settings."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from cpn_fast.cam.options import parse
from cpn_fast.cam.task import run_train
from cpn_fast.config.recipes import RECIPES, Recipe
from cpn_fast.config.serialise import config_from_dict, config_to_dict, flat
from cpn_fast.config.training import (
    AffinityConfig,
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    OptimizerOptions,
    PatchOptions,
    SegmentConfig,
    TrainConfig,
    replace_dotted,
)
from cpn_fast.device import tune_allocator
from cpn_fast.files.background_score import DEFAULT_BETA
from cpn_fast.files.errors import DataError
from cpn_fast.pipeline.options import parse as parse_pipeline
from cpn_fast.reproduce.options import parse as parse_table
from cpn_fast.runs.checkpoint import load_checkpoint, save_checkpoint, state_sha256
from cpn_fast.runs.folder import RunFolder, check_same_settings
from cpn_fast.train import main
from cpn_kernels import native_library

BASE = ["--data", "voc:somewhere", "--output", "runs/x"]


def test_options_of_the_interface() -> None:
    config = parse([
        *BASE, "--method", "cpn", "--patch", "grid", "--backbone", "mobilenet_v2", "--weights", "w.pth",
        "--epochs", "3", "--max-steps", "7", "--batch-size", "16", "--crop", "256", "--lr", "0.02",
        "--momentum", "0.5", "--seed", "4", "--compile", "--precision", "bf16-mixed", "--devices", "2",
        "--workers", "5", "--options.cpcr-target", "dense", "--patch.segments", "99", "--hidden-colour", "dataset",
    ])  # fmt: skip
    assert config == TrainConfig(
        data="voc:somewhere", output=Path("runs/x"), method="cpn", backbone="mobilenet_v2", weights=Path("w.pth"),
        loop=LoopOptions(epochs=3, max_steps=7, batch_size=16, seed=4),
        optimizer=OptimizerOptions(lr=0.02, momentum=0.5),
        device=DeviceOptions(compile="on", precision="bf16-mixed", devices=2, workers=5),
        hidden_colour="dataset", augment=AugmentOptions(crop=256),
        patch=PatchOptions(kind="grid", segments=99), options=replace(TrainConfig("", Path()).options,
        cpcr_target="dense"),
    )  # fmt: skip
    assert parse([*BASE, "--patch=grid", "--batch_size=2"]).patch.kind == "grid"


def test_defaults_suit_the_machine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain = TrainConfig(data="voc:somewhere", output=Path("runs/x"))
    small = replace(plain, backbone="mobilenet_v2", augment=AugmentOptions(crop=256))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parse(BASE) == plain and not caplog.text
    with caplog.at_level("INFO"):
        assert parse([*BASE, "--accelerator", "cpu"]) == replace(small, device=DeviceOptions(accelerator="cpu"))
    assert "taking mobilenet_v2 and, unless --crop says otherwise, crops of 256 pixels" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse(BASE) == small
    assert parse([*BASE, "--crop", "96"]) == replace(small, augment=AugmentOptions(crop=96))
    assert parse([*BASE, "--backbone", "resnet38"]) == plain
    assert parse([*BASE, "--weights", "ilsvrc.params"]) == replace(plain, weights=Path("ilsvrc.params"))
    chosen = replace_dotted(plain, {"backbone": "resnet50", "seed": 3})
    assert parse(BASE, lambda config: replace_dotted(config, {"backbone": "resnet50", "seed": 3})) == chosen
    run = ["--data", "voc:somewhere", "--output", "runs/x", "--segment"]
    for words, backbone, crop in (([], "mobilenet_v2", 256), (["--backbone", "resnet38"], "resnet38", 448)):
        pipeline = parse_pipeline([*run, *words])
        assert pipeline.segment is not None
        for training in (pipeline.train, pipeline.segment):
            assert (training.backbone, training.augment.crop) == (backbone, crop)
    assert parse_table(["table1", *BASE]).base.backbone == "mobilenet_v2"
    assert parse_table(["table1", *BASE, "--backbone", "resnet38"]).base.loop.batch_size == 4
    assert parse_table(["table1", "--data", "demo:", "--output", "x"]).base.backbone == "resnet38_tiny"


def test_numbers_that_decide_over_results_are_these() -> None:
    """The recipes and defaults as README and paper state them; changed by hand, nothing else might notice."""
    options = MethodOptions()
    assert (options.warm_up, options.p_hidden, options.ohem, options.dropout) == (0.5, 0.5, 0.2, 0.5)
    plain = TrainConfig(data="", output=Path())
    assert plain.optimizer == OptimizerOptions(None, None, 5e-4, 0.9, 10.0) and plain.loop.batch_size == 8
    assert SegmentConfig(data="", output=Path(), masks="").loop.batch_size == 10
    found = {kind.__name__: RECIPES[kind]["mobilenet_v2"] for kind in (TrainConfig, SegmentConfig, AffinityConfig)}
    assert found == {
        "TrainConfig": Recipe(lr=0.01, momentum=0.0, epochs=16),
        "SegmentConfig": Recipe(lr=0.001, momentum=0.9, epochs=20),
        "AffinityConfig": Recipe(lr=0.01, momentum=0.9, epochs=8),
    }
    assert RECIPES[TrainConfig]["mobilenet_v2_stride8"] == RECIPES[TrainConfig]["mobilenet_v2"]
    assert RECIPES[TrainConfig]["efficientnet_lite2"] == RECIPES[TrainConfig]["mobilenet_v2"]
    assert RECIPES[TrainConfig]["resnet38"] == RECIPES[TrainConfig]["resnet50"] == Recipe(0.01, 0.9, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 1e-4},
        {"poly_power": 1.0},
        {"head_lr_factor": 1.0},
        {"seed": 1},
        {"batch_size": 4},
        {"options": MethodOptions(warm_up=0.25)},
        {"augment": AugmentOptions(crop=321)},
    ],
)
def test_what_decides_over_a_step_cannot_change_on_resume(changes: dict[str, object], tmp_path: Path) -> None:
    stored = TrainConfig(data="demo:", output=tmp_path)
    (name,) = changes
    with pytest.raises(DataError, match=rf"cannot resume with other settings: {name}"):
        check_same_settings(stored, replace_dotted(stored, changes), tmp_path)


def test_preset_gives_defaults_that_options_override() -> None:
    released = parse([*BASE, "--preset", "released"])
    assert released.preset == "released"
    assert released.optimizer.momentum == 5e-4 and released.optimizer.lr == 0.01
    assert released.lr_factors["refinement"] == 10
    assert released.options.p_hidden == 0.39 and released.options.winner_classes == "all"
    assert released.options.prcm == "released" and released.options.loss_resolution == "input"
    changed = parse(["--options.prcm", "softmax", *BASE, "--momentum", "0.8", "--preset=released"])
    assert changed.optimizer.momentum == 0.8 and changed.options.prcm == "softmax"
    assert changed.options.refined_pair_gradient and changed.patch.segments == 225


@pytest.mark.parametrize("wrong", [["--preset", "best"], ["--nonsense", "1"], ["--epochs", "many"]])
def test_wrong_options_exit_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, DataError)) as error:
        parse([*BASE, *wrong])
    if isinstance(error.value, SystemExit):
        assert error.value.code == 2
        assert wrong[0].strip("-") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["--data", "voc:/nowhere"], "/nowhere"),
        (["--options.ohem", "0"], "--options.ohem 0.0: expected above 0, at most 1"),
        (["--options.warm-up", "1"], "--options.warm-up 1.0: expected 0 or more, below 1"),
        (
            ["--options.warm-up-epochs", "8"],
            "--options.warm-up-epochs 8.0: expected 0 or more, below the run's 8 epochs",
        ),
        (["--options.p-hidden", "1.5"], "--options.p-hidden 1.5: expected 0..1"),
        (["--preset", "best"], "unknown preset 'best'; known: default, paper, released"),
    ],
)
def test_errors_are_one_line(
    wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "run"), "--data", "voc:x", "--backbone", "resnet38", *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_resume_takes_the_runs_settings(tmp_path: Path) -> None:
    stored = TrainConfig(
        data="voc:d",
        output=tmp_path,
        optimizer=OptimizerOptions(lr=0.5),
        patch=PatchOptions(kind="grid", grid_sides=(7, 8)),
    )
    RunFolder(tmp_path).create(stored, ("a",))
    assert parse(["--resume", "--output", str(tmp_path)]) == replace_dotted(stored, {"resume": True})
    assert parse(["--resume", f"--output={tmp_path}", "--lr", "1"]).optimizer.lr == 1
    with pytest.raises(DataError, match="no run here"):
        parse(["--resume", "--output", str(tmp_path / "other")])


def test_config_survives_json() -> None:
    config = TrainConfig(
        data="voc:ä", output=Path("runs/x"), weights=Path("w"), augment=AugmentOptions(resize=(5, 9)),
        patch=PatchOptions(cache_dir=Path("c")),
    )  # fmt: skip
    assert config_from_dict(TrainConfig, json.loads(json.dumps(config_to_dict(config))), "x") == config
    with pytest.raises(DataError, match=r"here: key options.mapnorm: unknown setting"):
        config_from_dict(TrainConfig, {"options": {"mapnorm": 1}}, "here")
    names = {f.name for kind in (TrainConfig, LoopOptions, OptimizerOptions, DeviceOptions) for f in fields(kind)}
    assert {name.partition(".")[0] for name in flat(config_to_dict(config))} == names - {"loop", "optimizer", "device"}


def test_records_after_the_checkpoint_go(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    lines = [json.dumps({"kind": kind, "step": step}) for step in (1, 2, 3) for kind in ("step", "eval")]
    run.metrics_path.write_text("\n".join(lines) + '\n{"kind": "step", "st')  # killed while writing
    assert [r["step"] for r in run.records("step")] == [1, 2, 3]
    run.truncate_records(2)
    assert run.metrics_path.read_text() == "\n".join(lines[:4]) + "\n"


def test_beta_is_the_measured_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.beta == DEFAULT_BETA
    run.scores_path.write_text('{"beta": 0.31}')
    assert run.beta == 0.31
    run.scores_path.write_text("{}")
    with pytest.raises(DataError, match=r"metrics\.json: key beta"):
        _ = run.beta


def test_load_model_without_weights_or_with_wrong_ones(make_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", weights=False)
    with pytest.raises(DataError, match="no weights yet"):
        run.load_model()
    other = make_run(tmp_path / "other", method="cam")
    run.model_path.write_bytes(other.model_path.read_bytes())
    with pytest.raises(DataError, match=r"does not fit the settings.*3 weights are missing, such as f9"):
        run.load_model()
    with pytest.raises(DataError, match="no run here"):
        RunFolder(tmp_path / "nothing").load_model()


def test_checkpoint_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    model = {"w": torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last), "n": torch.tensor(3)}
    state = {"step": 4, "config": {}, "classes": [], "model": model, "optimizer": {"lr": 0.1}, "scaler": {}}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert loaded["step"] == 4 and state_sha256(loaded["model"]) == state_sha256(model)
    changed = {"w": torch.nextafter(model["w"], torch.tensor(9.0)), "n": model["n"]}
    assert state_sha256(changed) != state_sha256(model)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"step": 1}, path)
    with pytest.raises(DataError, match="lacks format, config"):
        load_checkpoint(path)
    path.write_bytes(b"not even a zip")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_images_without_labels_are_refused(tmp_path: Path, small_demo: Path) -> None:
    config = TrainConfig(data=f"demo:{small_demo}", output=tmp_path / "run", backbone="resnet38_tiny", split="nonsense")
    with pytest.raises(DataError, match="nonsense"):
        run_train(config)


@pytest.mark.skipif(not tune_allocator(), reason="the C library has no mallopt")
def test_allocator_keeps_freed_pages() -> None:
    """Page faults of three 64 MiB blocks filled and freed after a first: its own each, tuned next to none."""
    script = (
        "import resource, numpy as np\n"
        "from cpn_fast.device import tune_allocator\n"
        "def faults():\n"
        "    for number in range(4):\n"
        "        np.full(2**26, 1, np.uint8)\n"
        "        if number == 0: start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start\n"
        "plain = faults()\n"
        "tune_allocator()\n"
        "print(plain, faults())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    plain, tuned = map(int, done.stdout.split())
    assert tuned < 100 < plain


def test_a_training_says_first_that_the_native_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_library, "load", lambda: (None, "no compiler"))
    with pytest.raises(DataError):
        run_train(TrainConfig(data=f"voc:{tmp_path / 'nothing'}", output=tmp_path / "run"))
    assert "the native library is missing: no compiler" in caplog.messages[0]
