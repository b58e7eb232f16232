"""The pipeline's bookkeeping, with commands that write what the real ones would, and once with the real ones."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpn_fast.cam.options import LabelConfig
from cpn_fast.cli import main as cli
from cpn_fast.config.export import ExportConfig
from cpn_fast.config.presets import preset_defaults
from cpn_fast.config.serialise import config_to_dict
from cpn_fast.config.training import (
    AffinityConfig,
    AugmentOptions,
    LoopOptions,
    SegmentAugment,
    SegmentConfig,
    SegmentLoop,
    TrainConfig,
    replace_dotted,
)
from cpn_fast.console.exit_status import EXIT_FAILED_IMAGES, guarded
from cpn_fast.data.check.options import CheckConfig
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.digest import weights_sha256
from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import locked
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import write_mask
from cpn_fast.pipeline import command
from cpn_fast.pipeline.command import run_pipeline
from cpn_fast.pipeline.options import PipelineOptions, parse, pipeline_of
from cpn_fast.pipeline.plan import PipelineConfig, plan
from cpn_fast.pipeline.runner import Outcome, Runner, run_process
from cpn_fast.pipeline.state import content_digest, data_digest, digest_of
from cpn_fast.refine.options import RefineConfig
from cpn_fast.report.options import ReportConfig
from cpn_fast.scoring.options import EvaluateConfig
from cpn_fast.segment.options import SegmentEvaluateConfig


class Commands:
    """Stands in for the commands: writes their outputs, and remembers how it was called."""

    def __init__(self, source: str) -> None:
        self.source = open_source(source)
        self.calls: list[str] = []
        self.resumed: list[str] = []
        self.statuses: dict[str, int] = {}
        self.failing_image: str | None = None
        self.beta = 0.3

    def __call__(self, command: str, config: Any, keep_open: int) -> Outcome:
        self.calls.append(command)
        given = json.dumps({**config_to_dict(config), "resume": False})
        if config_to_dict(config).get("resume", False):
            self.resumed.append(command)
        if command in ("train", "train-affinity", "segment train"):
            config.output.mkdir(parents=True, exist_ok=True)
            (config.output / "config.json").write_text("{}")
            if self.statuses.get(command, 0) == 0:
                (config.output / "model.safetensors").write_text(given)
        elif command in ("label", "refine"):
            self._masks(config.output, given)
        elif command in ("evaluate", "segment evaluate"):
            target = config.target if command == "evaluate" else config.run
            scores = {"miou": 0.5, "background": 0.75, "foreground": 0.25, "per_class": {}, "beta": self.beta}
            (target / "metrics.json").write_text(json.dumps(scores))
        elif self.statuses.get(command, 0) == 0:
            config.output.write_text(given)
        return Outcome(self.statuses.get(command, 0), 2.0, 100.0)

    def _masks(self, output: Path, settings: str) -> None:
        with Manifest(output / "manifest.jsonl") as manifest:
            for record in self.source.records("train"):
                failed = record.id == self.failing_image
                manifest.append({"id": record.id, "status": "error" if failed else "ok", "error": "it is torn"})
                if not failed:
                    write_mask(output / "SegmentationClass" / f"{record.id}.png", np.zeros((4, 4), np.uint8))
        (output / "SoftMaps").mkdir(exist_ok=True)
        (output / "SoftMaps" / "all.npz").write_text(settings)


def run_all(config: PipelineConfig, runner: Runner) -> Path:
    return run_pipeline(config, runner)


def real_command(command: str, config: Any, keep_open: int) -> Outcome:
    """The command itself in this process; but for exports, which take long and are tested on their own."""
    if command == "export":
        config.output.write_bytes(b"onnx")
        return Outcome(0, 1.0, 1.0)
    return Outcome(guarded(lambda: cli.run_config(command, config)), 1.0, 1.0)


@pytest.fixture
def commands(small_demo: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setattr(command, "write_page", lambda config, source, results: config.output / "report.html")
    return Commands(f"demo:{small_demo}")


def pipeline(small_demo: Path, output: Path, **options: Any) -> PipelineConfig:
    """One round of CPN, unless asked for otherwise."""
    given: dict[str, Any] = {"refine": "crf", "backbone": "resnet38_tiny", "method": "cpn", "rounds": 1, **options}
    return pipeline_of(PipelineOptions(f"demo:{small_demo}", output, **given))


ALL = [
    *("train", "evaluate", "label", "evaluate", "export", "refine", "evaluate"),
    *("segment train", "segment evaluate", "export"),
]


def test_every_stage_runs_once_in_order(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls == ALL
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls == ALL
    state = json.loads((tmp_path / "state" / "train.json").read_text())["stage"]
    assert (state["seconds"], state["peak_memory_mib"], state["attempts"]) == (2.0, 100.0, 1)


def test_a_second_round_learns_the_sure_pixels_of_the_first(
    small_demo: Path, tmp_path: Path, commands: Commands
) -> None:
    config = pipeline(small_demo, tmp_path, rounds=2, label="--max-side 512 --beta 0.4", train="--epochs 3")
    first, labels, second, *others = plan(config, "val", True)
    assert (first.config.method, first.config.pixel_masks, first.config.loop.epochs) == ("cam", None, 3)
    assert (labels.config.run, labels.config.void_margin, labels.config.max_side) == (
        first.config.output,
        (0.15, 0.1),
        512,
    )
    assert labels.config.beta is labels.config.void_band is None and not labels.config.soft_maps
    assert next(stage for stage in others if stage.name == "export labeller").needs == ("train", "score")
    unscored = {stage.name: stage for stage in plan(config, None, False)}  # there the labelling finds the score
    assert unscored["export labeller"].needs == ("label",) and "score" not in unscored
    assert (second.config.method, second.config.pixel_masks) == ("cpn", labels.config.output)
    assert next(stage for stage in others if stage.name == "label").config.beta == 0.4
    run_all(config, commands)
    assert commands.calls == ["train", "label", *ALL]
    commands.calls.clear()
    mask = next((tmp_path / "first-masks" / "SegmentationClass").glob("*.png"))
    mask.unlink()  # what follows from the labels of pixels runs again, the first training does not
    run_all(config, commands)
    assert commands.calls[0] == "label" and commands.calls.count("train") == 0
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path, rounds=2, label="--max-side 512 --beta 0.4", train="--epochs 4"), commands)
    assert commands.calls[:4] == ["train", "label", "train", "evaluate"]
    assert pipeline(small_demo, tmp_path, rounds=None).rounds == 2
    assert pipeline(small_demo, tmp_path, rounds=None, method="seam").rounds == 1
    assert pipeline(small_demo, tmp_path, rounds=None, train="--options.teacher 0.9").rounds == 1
    with pytest.raises(DataError, match=r"makes the pixel labels itself, found --train '--options\.teacher 0\.9'"):
        pipeline(small_demo, tmp_path, rounds=2, train="--options.teacher 0.9")
    for rounds in (0, 5):
        with pytest.raises(DataError, match=f"--rounds {rounds}: expected 1 to 4"):
            pipeline(small_demo, tmp_path, rounds=rounds)
    with pytest.raises(DataError, match="--label '--pairs 2': --pairs is for class activation maps"):
        pipeline(small_demo, tmp_path, rounds=2, label="--pairs 2")
    assert pipeline(small_demo, tmp_path, rounds=1, label="--pairs 2").label.pairs == 2
    with pytest.raises(DataError, match="--rounds 2 is for the methods cam and cpn, found --method seam"):
        pipeline(small_demo, tmp_path, rounds=2, method="seam")


def test_every_round_learns_what_the_one_before_it_labelled(
    small_demo: Path, tmp_path: Path, commands: Commands
) -> None:
    config = pipeline(small_demo, tmp_path, rounds=4, train="--epochs 3", label="--refine pixels")
    stages = {stage.name: stage for stage in plan(config, "val", True)}
    names = ["first", "second", "third"]
    assert list(stages)[:7] == [f"{name} {what}" for name in names for what in ("train", "label")] + ["train"]
    taught = [stages[f"{name} train"].config for name in names] + [stages["train"].config]
    assert [one.method for one in taught] == ["cam", "cam", "cam", "cpn"]
    assert [one.pixel_masks for one in taught] == [None, *(tmp_path / f"{name}-masks" for name in names)]
    assert [stages[f"{name} label"].config.refine for name in names] == [None, "pixels", "pixels"]
    needed = [stages[f"{name} train"].needs for name in names] + [stages["train"].needs]
    assert needed == [(), ("first label",), ("second label",), ("third label",)]
    run_all(config, commands)
    assert commands.calls == ["train", "label"] * 3 + ALL
    commands.calls.clear()
    next((tmp_path / "second-masks" / "SegmentationClass").glob("*.png")).unlink()
    run_all(config, commands)
    assert commands.calls[0] == "label" and commands.calls.count("train") == 0
    run_all(pipeline(small_demo, tmp_path, rounds=3, train="--epochs 3", label="--refine pixels"), commands)
    assert commands.calls.count("train") == 1  # the last alone learns from other masks than before


def test_another_background_score_labels_anew(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    """Masks take the best background score of the run's scores, so they depend on these."""
    run_all(pipeline(small_demo, tmp_path), commands)
    commands.beta = 0.4
    (tmp_path / "train" / "metrics.json").unlink()
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls[:3] == ["evaluate", "label", "evaluate"], "the run's scores, its masks, their scores"
    assert "export" in commands.calls and "train" not in commands.calls


def test_the_walk_needs_its_network(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path, refine="walk+crf", segment=False), commands)
    assert commands.calls == [*ALL[:5], "train-affinity", "refine", "evaluate"]


def test_options_of_a_stage_run_it_and_what_depends_on_it(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path), commands)
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path, label="--max-side 512"), commands)
    # All that reads the masks runs again; the segmentation model does not, since the refined ones came out equal.
    assert commands.calls == ["label", "evaluate", "refine", "evaluate"]
    assert (tmp_path / "replaced" / "masks" / "SegmentationClass").is_dir()
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path, label="--max-side 512 --workers 1"), commands)
    assert commands.calls == []  # the number of workers changes no mask


def test_other_settings_of_the_training_run_everything(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path), commands)
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path, train="--lr 0.02"), commands)
    assert commands.calls[:3] == ["train", "evaluate", "label"]
    assert commands.resumed == []
    assert (tmp_path / "replaced" / "train" / "model.safetensors").is_file()


def test_a_shortened_stage_runs_again_without_the_limit(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path, train="--max-steps 2"), commands)
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls[0] == "train"


def test_weights_are_known_by_their_content(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    weights, elsewhere = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    weights.write_bytes(b"one")
    run_all(pipeline(small_demo, tmp_path / "run", weights=weights), commands)
    commands.calls.clear()
    weights.rename(elsewhere)
    run_all(pipeline(small_demo, tmp_path / "run", weights=elsewhere), commands)
    assert commands.calls == []
    elsewhere.write_bytes(b"two")
    weights_sha256.cache_clear()  # as a new process has it
    run_all(pipeline(small_demo, tmp_path / "run", weights=elsewhere), commands)
    assert commands.calls[:2] == ["train", "evaluate"]
    elsewhere.unlink()
    weights_sha256.cache_clear()
    with pytest.raises(DataError, match=r"b\.safetensors: no such weights file; give --weights"):
        run_all(pipeline(small_demo, tmp_path / "run", weights=elsewhere), commands)


def test_weights_may_lie_in_the_folder_itself(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "backbone.safetensors").write_bytes(b"pretrained")
    run_all(pipeline(small_demo, first, weights=first / "backbone.safetensors"), commands)
    first.rename(second)
    run_all(pipeline(small_demo, second, weights=second / "backbone.safetensors"), commands)
    assert commands.calls == ALL


def test_the_folder_may_be_moved(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path / "a"), commands)
    commands.calls.clear()
    (tmp_path / "a").rename(tmp_path / "b")
    run_all(pipeline(small_demo, tmp_path / "b"), commands)
    assert commands.calls == []


def test_a_mask_that_is_gone_is_made_again(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path), commands)
    commands.calls.clear()
    next((tmp_path / "masks" / "SegmentationClass").glob("*.png")).unlink()
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls == ["label"]  # which gave the same masks, so nothing else has to run
    assert not (tmp_path / "replaced").exists()


def test_a_stop_goes_on_from_there(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    commands.statuses["train"] = 130
    with pytest.raises(KeyboardInterrupt):
        run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls == ["train"]
    commands.statuses.clear()
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.resumed == ["train"]
    assert commands.calls == ["train", *ALL]
    state = json.loads((tmp_path / "state" / "train.json").read_text())["stage"]
    assert (state["seconds"], state["attempts"]) == (4.0, 2)


@pytest.mark.parametrize(("status", "message"), [(2, "status 2"), (-9, "signal 9.*memory")])
def test_a_failing_stage_is_named(
    status: int, message: str, small_demo: Path, tmp_path: Path, commands: Commands
) -> None:
    commands.statuses["segment train"] = status
    with pytest.raises(DataError, match=f"'segment'.*{message}.*same command"):
        run_all(pipeline(small_demo, tmp_path), commands)
    assert "segment evaluate" not in commands.calls


def test_failed_images_stop_the_pipeline(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    commands.failing_image = commands.source.records("train")[3].id
    commands.statuses["label"] = EXIT_FAILED_IMAGES
    with pytest.raises(DataError, match=r"'label': 1 of 12 images failed, the first: it is torn"):
        run_all(pipeline(small_demo, tmp_path), commands)
    commands.failing_image = None
    commands.statuses.clear()
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls == ALL[2:]


def test_a_stage_that_writes_nothing_is_noticed(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    def silent(command: str, config: Any, keep_open: int) -> Outcome:
        return Outcome(0, 1.0, 1.0)

    with pytest.raises(DataError, match=r"without writing .*train/model\.safetensors"):
        run_all(pipeline(small_demo, tmp_path), silent)


def test_a_foreign_folder_is_left_alone(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="did not make it"):
        run_all(pipeline(small_demo, tmp_path), commands)
    assert (tmp_path / "train" / "thesis.tex").is_file()
    assert commands.calls == []


def test_two_calls_in_one_folder(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    with locked(tmp_path), pytest.raises(DataError, match="is writing here"):
        run_all(pipeline(small_demo, tmp_path), commands)
    run_all(pipeline(small_demo, tmp_path), commands)


def test_a_state_of_another_version(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path), commands)
    (tmp_path / "state" / "label.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match=r"label\.json: key format: found 99, expected 1"):
        run_all(pipeline(small_demo, tmp_path), commands)
    (tmp_path / "state" / "label.json").write_text("{")
    with pytest.raises(DataError, match=r"label\.json.*not JSON"):
        run_all(pipeline(small_demo, tmp_path), commands)
    (tmp_path / "state" / "label.json").write_text('{"format": 1, "stage": {"digest": 3, "settings": {}}}')
    with pytest.raises(DataError, match=r"label\.json: key stage\.digest: found 3, expected a text; delete the file"):
        run_all(pipeline(small_demo, tmp_path), commands)


def test_images_that_come_or_go_change_the_inputs(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, record in enumerate(commands.source.records("train")[:3]):
        os.link(record.image_path, folder / f"{number}.jpg")
    (folder / "labels.csv").write_text("image,labels,split\n0.jpg,a,train\n1.jpg,b,train\n")
    options = PipelineOptions(data=f"folder:{folder}", output=tmp_path / "run", segment=False, refine="none", rounds=1)
    config = pipeline_of(options)
    fake = Commands(f"folder:{folder}")
    run_all(config, fake)
    assert fake.calls == ["train", "label", "export"]  # no ground truth, so nothing to score
    (folder / "labels.csv").write_text("image,labels,split\n0.jpg,a,train\n1.jpg,b,train\n2.jpg,b,train\n")
    fake = Commands(f"folder:{folder}")
    run_all(config, fake)
    assert fake.calls == ["train", "label"]  # the weights came out equal here, so there is nothing new to export
    (folder / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.jpg"):
        run_all(config, fake)


def test_photos_without_masks_are_all_trained_on_and_labelled(
    small_demo: Path, tmp_path: Path, commands: Commands
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, record in enumerate(commands.source.records("train")):
        os.link(record.image_path, folder / f"{number}.jpg")
    (folder / "labels.csv").write_text("image,labels\n" + "".join(f"{n}.jpg,{'ab'[n % 2]}\n" for n in range(12)))
    assert "val" in open_source(f"folder:{folder}").splits()  # by the hash of the names
    options = PipelineOptions(data=f"folder:{folder}", output=tmp_path / "run", segment=False, refine="none", rounds=1)
    seen: dict[str, Any] = {}

    def keep(command: str, config: Any, keep_open: int) -> Outcome:
        seen[command] = config
        return fake(command, config, keep_open)

    fake = Commands(f"folder:{folder}")
    run_all(pipeline_of(options), keep)
    assert (seen["train"].split, seen["label"].split) == ("all", "all")
    named = dataclasses.replace(options, split="train", output=tmp_path / "named")
    run_all(pipeline_of(named), keep)
    assert (seen["train"].split, seen["label"].split) == ("train", "train")


def test_options_that_do_not_exist_are_refused_before_anything_runs(
    small_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pipeline(small_demo, tmp_path, segmentation="--no-such-option 3")
    assert "no-such-option" in capsys.readouterr().err
    with pytest.raises(DataError, match="--train"):
        pipeline(small_demo, tmp_path, train="--lr '0.1")
    with pytest.raises(DataError, match=r"--label '--output x': --output follows from the pipeline's own options"):
        pipeline(small_demo, tmp_path, label="--output x")


def test_the_command_line_becomes_the_configs_of_the_stages(tmp_path: Path) -> None:
    config = parse([
        "--data", "voc:x", "--output", str(tmp_path), "--backbone", "mobilenet_v2", "--weights", "w.pth",
        "--crop", "96", "--seed", "3", "--method", "seam", "--split", "train_aug",
        "--scales", "0.5", "1", "--refine", "walk+crf",
        "--train", "--preset paper --epochs 5 --patch.segments 40", "--affinity", "--crop 64 --beta 0.3",
        "--label", "--max-side 512", "--postprocess", "--steps 64", "--segmentation", "--norms frozen",
        "--evaluate", "--crf", "--export", "--variant float16", "--eval-split", "val",
    ])  # fmt: skip
    network: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": Path("w.pth")}
    stages = {stage.name: stage.config for stage in plan(config, "val", True)}
    assert list(stages) == [
        *("train", "score", "label", "score masks", "export labeller", "affinity", "refine", "score refined masks"),
        *("segment", "evaluate", "export"),
    ]
    options = replace_dotted(TrainConfig("", Path()), preset_defaults("paper"))
    assert stages["train"] == replace(
        options, data="voc:x", split="train_aug", output=tmp_path / "train", preset="paper", method="seam",
        loop=LoopOptions(epochs=5, seed=3), augment=AugmentOptions(crop=96),
        patch=replace(options.patch, segments=40), **network,
    )  # fmt: skip
    assert stages["label"] == LabelConfig(
        tmp_path / "train", "voc:x", tmp_path / "masks", split="train_aug", scales=(0.5, 1.0), max_side=512,
        soft_maps=True,
    )  # fmt: skip
    assert stages["affinity"] == AffinityConfig(
        masks=tmp_path / "masks", output=tmp_path / "affinity", data="voc:x", beta=0.3, augment=AugmentOptions(crop=64),
        loop=LoopOptions(seed=3), **network,
    )  # fmt: skip
    assert stages["refine"] == RefineConfig(
        tmp_path / "masks", tmp_path / "masks-refined", random_walk=tmp_path / "affinity", crf=True, steps=64
    )
    assert stages["segment"] == SegmentConfig(
        data="voc:x", split="train_aug", output=tmp_path / "segment", masks=str(tmp_path / "masks-refined"),
        norms="frozen", loop=SegmentLoop(seed=3), augment=SegmentAugment(crop=96), **network,
    )  # fmt: skip
    assert stages["evaluate"] == SegmentEvaluateConfig(tmp_path / "segment", "voc:x", split="val", crf=True)
    assert stages["export"] == ExportConfig(tmp_path / "segment", tmp_path / "segment.onnx", precision="float16")
    assert stages["score"] == EvaluateConfig(tmp_path / "train", "voc:x", split="train_aug", scales=(0.5, 1.0))


def test_the_command_that_is_shown_gives_the_stages_config(tmp_path: Path) -> None:
    words = ["--data", "demo:", "--output", str(tmp_path / "a b"), "--refine", "walk", "--weights", "w.pth"]
    words += ["--train", "--preset released --no-channels-last --options.no-tcp --patch.grid-sides 28 56"]
    words += ["--evaluate", "--no-flip", "--label", "--void-band 0.2 0.3"]
    for stage in plan(parse(words), "val", True):
        program, *shown = shlex.split(stage.text)
        assert program == "cpn" and cli.parse(*cli.split_name(shown)) == stage.config


def test_a_given_backbone_is_taken_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpn_fast.device.has_gpu", lambda: False)
    words = ["--data", "demo:", "--output", str(tmp_path), "--refine", "walk"]
    for given, backbone, crop in (
        (["--backbone", "resnet38"], "resnet38", 448),
        (["--weights", "ilsvrc.params"], "resnet38", 448),
        (["--crop", "96"], "mobilenet_v2", 96),
        (["--crop", "448"], "mobilenet_v2", 448),
        ([], "mobilenet_v2", 256),
    ):
        config = parse([*words, *given])
        assert config.affinity is not None and config.segment is not None
        for training in (config.train, config.affinity, config.segment):
            assert (training.backbone, training.augment.crop) == (backbone, crop), given
        assert f"--backbone {backbone}" in plan(config, "val", True)[0].text


def test_an_option_that_a_later_version_adds_runs_nothing_again(
    small_demo: Path, tmp_path: Path, commands: Commands
) -> None:
    run_all(pipeline(small_demo, tmp_path, segment=False), commands)
    path = tmp_path / "state" / "label.json"
    content = json.loads(path.read_text())
    settings = content["stage"]["settings"]
    assert settings.pop("threshold") == 0.5  # as a version would have written that did not have it
    inputs = [json.loads((path.parent / f"{name}.json").read_text())["stage"]["outputs"] for name in ("train", "score")]
    source = commands.source
    content["stage"]["digest"] = digest_of({
        "settings": settings, "weights": None, "data": [data_digest(source, source.records("train"), False)],
        "inputs": inputs,
    })  # fmt: skip
    path.write_text(json.dumps(content))
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path, segment=False), commands)
    assert commands.calls == []
    path.write_text(json.dumps(content))
    run_all(pipeline(small_demo, tmp_path, segment=False, label="--threshold 0.6"), commands)
    assert commands.calls[0] == "label"


def test_a_stage_that_the_version_before_named_otherwise(small_demo: Path, tmp_path: Path, commands: Commands) -> None:
    run_all(pipeline(small_demo, tmp_path), commands)
    (tmp_path / "state" / "refine.json").rename(tmp_path / "state" / "postprocess.json")
    commands.calls.clear()
    run_all(pipeline(small_demo, tmp_path), commands)
    assert commands.calls == []
    assert not (tmp_path / "state" / "postprocess.json").exists()


def test_content_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    assert content_digest((folder,)) is None
    write_mask(folder / "a.png", np.zeros((2, 2), np.uint8))
    first = content_digest((folder,))
    (folder / "notes.txt").write_text("not a mask")
    assert content_digest((folder,)) == first
    (folder / "a.png").rename(folder / "b.png")
    second = content_digest((folder,))
    write_mask(folder / "b.png", np.ones((2, 2), np.uint8))
    assert len({first, second, content_digest((folder,)), None}) == 4


@pytest.mark.slow
def test_a_process_is_measured(small_demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    with open(os.devnull) as lock:
        good = run_process("check-data", CheckConfig(f"demo:{small_demo}"), lock.fileno())
        bad = run_process("report", ReportConfig(small_demo), lock.fileno())
    assert (good.status, bad.status) == (0, 2)
    assert 0.1 < good.seconds < time.perf_counter() - started
    assert 5 < good.peak_memory_mib < 2000
    shown = capfd.readouterr()
    assert "images" in shown.out + shown.err and "no run here" in shown.err


SHORT = "--batch-size 2 --max-steps 2 --epochs 1 --workers 0 --val-images 2"


@pytest.mark.slow
def test_every_stage_with_the_real_commands(small_demo: Path, tmp_path: Path) -> None:
    """A few images and steps: what is learnt in them is worth nothing and is not looked at."""
    config = pipeline(
        small_demo,
        tmp_path / "run",
        crop=64,
        scales=(1.0,),
        refine="walk+crf",
        rounds=2,
        train=f"{SHORT} --patch grid",
        affinity=f"{SHORT} --beta 0.3",  # the best score of a network that has learnt nothing may be 0
        refinement="--beta 0.3",
        segmentation=SHORT,
        evaluate="--scales 1 --no-flip",
    )
    page = run_all(config, real_command)
    text = page.read_text(encoding="utf-8")
    for part in ("score refined masks", "segment evaluate", "segmentation of ", "refined mask of ", "ground truth of "):
        assert part in text
    out = tmp_path / "run"
    for folder in ("first-masks", "masks", "masks-refined"):
        assert len(list((out / folder / "SegmentationClass").glob("*.png"))) == 12
    for name in ("train", "masks", "masks-refined", "segment"):
        assert 0 <= json.loads((out / name / "metrics.json").read_text())["miou"] <= 1


@pytest.mark.slow
def test_a_killed_training_keeps_its_checkpoint_and_goes_on(small_demo: Path, tmp_path: Path) -> None:
    words = ["run", "--data", f"demo:{small_demo}", "--output", str(tmp_path), "--no-segment", "--refine", "none"]
    words += ["--backbone", "resnet38_tiny", "--crop", "64", "--method", "cam", "--rounds", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cpn_fast.cli", *words, "--train", "--epochs 500 --batch-size 2 --eval-every 0"],
        stderr=subprocess.DEVNULL,
    )
    records = tmp_path / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (records.is_file() and records.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert (tmp_path / "train" / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((tmp_path / "state" / "train.json").read_text())["stage"]["outputs"] is None
    with locked(tmp_path), locked(tmp_path / "train"):  # nothing works there any more
        pass
