"""The final table: the pipeline that it asks for, and what it reads of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.pipeline.plan import PipelineConfig, plan
from cpn_fast.refine.options import WALK_POWER, WALK_STEPS
from cpn_fast.reproduce import command, final
from cpn_fast.reproduce.options import parse
from cpn_fast.reproduce.tables import TABLES


def run_of(folder: Path, name: str, **content: object) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "metrics.json").write_text(json.dumps(content))


def finished(config: PipelineConfig) -> Path:
    """What a pipeline that has run leaves, different for each seed."""
    more = 0.02 * config.train.loop.seed
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

    monkeypatch.setattr(command, "run_pipeline", run)
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
    command.run_reproduce(parse(words))
    with (tmp_path / "table5.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = (tmp_path / "table5.csv").read_text()
    for figure in ("30", "32", "41", "43", "50", "52", "54"):
        assert figure in text
    assert {row["row"] for row in rows} == set(row.name for row in TABLES["table5"].rows(TrainConfig("", Path())))
    first, second = asked
    assert (first.train.loop.seed, second.train.loop.seed, first.output.name) == (0, 1, "pipeline-seed0")
    # Half of the demo's 14, 6 and 12 epochs, and the paper's CPN.
    assert first.affinity is not None and first.segment is not None
    assert (first.train.loop.epochs, first.affinity.loop.epochs, first.segment.loop.epochs) == (7, 3, 6)
    assert (first.train.options.prcm, first.train.options.map_norm) == ("softmax", "max")
    crops = (first.train.augment.crop, first.affinity.augment.crop, first.segment.augment.crop)
    assert crops == (112, 112, 112) and first.segment.augment.resize == (80, 160)
    refining = {stage.name: stage.config for stage in plan(first, "val", True)}["refine"]
    assert (refining.steps, refining.power, refining.crf) == (64, 8, False)
    assert refining.random_walk == first.output / "affinity"
    ours = parse([*words, "--preset", "default"])
    settled, _ = command.settled_base(ours, open_source(first.train.data))
    refining = final.pipeline_of(settled, 0, "val", (1.0,), int).refine
    assert refining is not None and (refining.steps, refining.power) == (WALK_STEPS, WALK_POWER) != (64, 8)
    stored = json.loads((tmp_path / "table5.json").read_text())["settings"]
    assert stored["train"]["options.prcm"] == "softmax" and stored["refine"] == {"steps": 64, "power": 8}


def test_photographs_have_the_recipes_epochs(tmp_path: Path) -> None:
    base = with_recipe(TrainConfig("voc:x", tmp_path, backbone="mobilenet_v2"))
    config = final.pipeline_of(base, 2, "val", (1.0,), lambda epochs: epochs * 10)
    assert config.affinity is not None and config.segment is not None
    assert (config.train.loop.epochs, config.affinity.loop.epochs, config.segment.loop.epochs) == (16, 80, 200)
    assert (config.affinity.loop.seed, config.segment.backbone, config.evaluate.crf) == (2, "mobilenet_v2", True)


def test_a_source_that_cannot_be_scored(small_demo: Path, tmp_path: Path) -> None:
    words = ["table5", "--data", f"demo:{small_demo}", "--output", str(tmp_path)]
    with pytest.raises(DataError, match="pretrain has none"):
        command.run_reproduce(parse([*words, "--eval-split", "pretrain"]))
    with pytest.raises(DataError, match="--images 3"):
        command.run_reproduce(parse([*words, "--images", "3"]))
