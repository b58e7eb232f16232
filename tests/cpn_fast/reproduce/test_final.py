"""The final table: the pipeline that it asks for, and what it reads of it."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from cpn_fast.cam import task as train
from cpn_fast.cli import main as cli
from cpn_fast.config.presets import PRESETS
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import TrainConfig, replace_dotted
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.pipeline.plan import PipelineConfig, plan
from cpn_fast.refine.options import WALK_POWER, WALK_STEPS
from cpn_fast.reproduce import command, final
from cpn_fast.reproduce.tables import TABLES


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_words_give_the_config_back(preset: str, tmp_path: Path) -> None:
    given = ["--data", "demo:", "--output", str(tmp_path), "--preset", preset, "--no-channels-last", "--lr", "0.02"]
    given += ["--patch.grid-sides", "28", "56", "--options.prcm", "softmax", "--options.refined-pair-gradient"]
    base = with_recipe(train.parse([*given, "--augment.resize", "104", "136", "--options.no-tcp"]))
    words = ["--data", "demo:", "--output", str(tmp_path), *final.words_of(base)]
    back = with_recipe(train.parse([*words, "--backbone", base.backbone]))
    assert dataclasses.replace(back, preset=preset) == base  # type: ignore[arg-type]


def run_of(folder: Path, name: str, **content: object) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "metrics.json").write_text(json.dumps(content))


def finished(config: PipelineConfig) -> Path:
    """What a pipeline that has run leaves, different for each seed."""
    more = 0.02 * config.seed
    run_of(config.output, "masks", miou=0.30 + more)
    run_of(config.output, "masks-refined", miou=0.41 + more)
    results = {"single scale": {"miou": 0.1}, "multi-scale": {"miou": 0.50}, "multi-scale + CRF": {"miou": 0.52 + more}}
    run_of(config.output, "segment", miou=0.52, results=results)
    return config.output / "report.html"


def test_the_table_of_two_seeds(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PipelineConfig] = []

    def run(config: PipelineConfig) -> Path:
        asked.append(config)
        return finished(config)

    monkeypatch.setattr(command, "run_pipeline", lambda config, commands: run(config))
    (tmp_path / "backbone.safetensors").write_bytes(b"")
    words = [
        "table5",
        "--data",
        f"demo:{small_demo}",
        "--output",
        str(tmp_path),
        "--seeds",
        "0",
        "1",
        "--budget",
        "0.5",
    ]
    command.run_reproduce(command.parse(words), cli.command_line())
    with (tmp_path / "table5.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = (tmp_path / "table5.csv").read_text()
    for figure in ("30", "32", "41", "43", "50", "52", "54"):
        assert figure in text
    assert {row["row"] for row in rows} == set(row.name for row in TABLES["table5"].rows(TrainConfig("", Path())))
    first, second = asked
    assert (first.seed, second.seed, first.output.name) == (0, 1, "pipeline-seed0")
    # Half of the demo's 14, 6 and 12 epochs, and the paper's CPN.
    for text, epochs in ((first.train, "7"), (first.affinity, "3"), (first.segmentation, "6")):
        assert f"--epochs {epochs}" in text
    walk = next(stage for stage in plan(first, "val", True) if stage.name == "postprocess")
    refining = cli.parse(*cli.split_name(walk.argv))
    assert (refining.steps, refining.power, refining.crf) == (64, 8, False)
    assert "--options.prcm softmax" in first.train and "--options.map-norm max" in first.train
    ours = command.parse([*words, "--preset", "default"])
    settled, _ = command.settled_base(ours, open_source(first.data))
    walk = next(
        stage
        for stage in plan(final.pipeline_of(settled, 0, "val", (1.0,), int), "val", True)
        if stage.name == "postprocess"
    )
    refining = cli.parse(*cli.split_name(walk.argv))
    assert (refining.steps, refining.power) == (WALK_STEPS, WALK_POWER) != (64, 8)
    source = open_source(first.data)
    for stage in plan(first, "val", True):  # the real parsers understand every stage
        cli.parse(*cli.split_name(stage.argv))
    assert source.records("val")


def test_a_source_that_cannot_be_scored(small_demo: Path, tmp_path: Path) -> None:
    words = ["table5", "--data", f"demo:{small_demo}", "--output", str(tmp_path)]
    with pytest.raises(DataError, match="pretrain has none"):
        command.run_reproduce(command.parse([*words, "--eval-split", "pretrain"]), cli.command_line())
    with pytest.raises(DataError, match="--images 3"):
        command.run_reproduce(command.parse([*words, "--images", "3"]), cli.command_line())


def test_other_fields_are_kept(tmp_path: Path) -> None:
    base = replace_dotted(TrainConfig(data="x", output=tmp_path), {"patch.segments": 40, "options.ohem": 1.0})
    assert final.words_of(base) == ["--options.ohem", "1.0", "--patch.segments", "40"]
