"""A run folder of somebody else's names code in its config.json: it is not run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpn_fast.cli import main as cli
from cpn_fast.config.backbones import TRUSTED, check_trusted, trust_backbone
from cpn_fast.config.training import TRAINING_CONFIGS, LoopOptions, SegmentConfig, TrainConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.run import run_training


class RunError(Exception):
    """What the foreign code raises."""


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> None:
        raise RunError

    monkeypatch.setenv(TRUSTED, "")
    monkeypatch.setitem(sys.modules, "foreign", SimpleNamespace(make=make))  # type: ignore[arg-type]


def foreign(path: Path, stage: str = "train", backbone: str = "foreign:make") -> RunFolder:
    extra = {"masks": "truth" if stage == "segment" else path} if stage != "train" else {}
    run = RunFolder(path)
    run.create(TRAINING_CONFIGS[stage](data="", output=path, backbone=backbone, **extra), ("one",))
    run.model_path.write_bytes(b"")
    return run


@pytest.mark.parametrize(
    ("stage", "load"), [("train", "load_model"), ("segment", "load_deeplab"), ("affinity", "load_affinity_net")]
)
def test_loading_runs_no_code_that_a_file_names(
    tmp_path: Path, stage: str, load: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = foreign(tmp_path, stage)
    with pytest.raises(DataError, match=r"config\.json: key config\.backbone: 'foreign:make' .*CPN_TRUST_BACKBONES"):
        getattr(run, load)()
    monkeypatch.setenv(TRUSTED, "other:make,foreign:make")
    with pytest.raises(DataError, match=r"make\(\) failed \(RunError"):
        getattr(run, load)()


def test_resuming_takes_it_only_where_it_is_repeated(tmp_path: Path) -> None:
    run = foreign(tmp_path)
    with pytest.raises(DataError, match="would run code"):
        run_training(TrainConfig("", tmp_path, backbone="foreign:make", loop=LoopOptions(resume=True)), None)  # type: ignore
    arguments = ["--output", str(run.path), "--resume", "--data", "demo:"]
    cli.parse("train", arguments)
    with pytest.raises(DataError, match="would run code"):
        check_trusted("foreign:make", "")
    cli.parse("train", [*arguments, "--backbone", "foreign:make"])
    check_trusted("foreign:make", "")


def test_timm_takes_plain_names_from_a_file() -> None:
    for name in ("resnet38", "timm:resnet18.a1_in1k"):
        check_trusted(name, "")
    for name in ("timm:hf-hub:who/what", "timm:local-dir:/x", "timm:/x", "os:abort"):
        with pytest.raises(DataError, match="repeat"):
            check_trusted(name, "")
        trust_backbone(name)
        check_trusted(name, "")


def test_a_run_without_weights_names_the_command_that_makes_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create(SegmentConfig(data="", output=tmp_path, masks="truth", backbone="resnet38_tiny"), ("one",))
    with pytest.raises(DataError, match=rf"no weights yet.*`cpn segment train \.\.\. --output {tmp_path} --resume`"):
        run.load_deeplab()
