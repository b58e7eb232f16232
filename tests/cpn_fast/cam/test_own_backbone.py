"""A backbone of one's own, by its name alone, from the training to the exported model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cpn_fast
from cpn_fast.cli.main import main as cpn
from cpn_fast.runs.folder import RunFolder
from tests.cpn_fast.models.backbones.pyramids import Pyramid, build

NAME = f"{Pyramid.__module__}:build"


def train(demo: Path, output: Path, *more: str) -> int:
    words = ["--data", f"demo:{demo}", "--output", str(output), "--backbone", NAME, "--patch", "grid", "--crop", "32"]
    words += ["--batch-size", "2", "--workers", "0", "--eval-every", "0", "--accelerator", "cpu", "--epochs", "1"]
    return cpn(["train", *words, *more])


@pytest.mark.parametrize("name", ["timm:convnext_tiny", "no_such_package:build"])
def test_what_is_not_there_leaves_no_folder(
    name: str, small_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert train(small_demo, tmp_path / "run", "--backbone", name) == 2
    assert f"--backbone {name}: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_from_training_to_export(small_demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(tmp_path / "run")
    assert train(small_demo, run.path, "--max-steps", "2") == 0
    assert "random numbers" not in caplog.text  # a network of one's own brings its weights
    assert run.config.backbone == NAME
    assert train(small_demo, run.path, "--max-steps", "3", "--resume") == 0
    assert [record["step"] for record in run.records("step")] == [1, 2, 3]
    net = run.load_model()
    norms, own = net.backbone.batch_norms(), build()
    assert len(norms) == 4 and all(norm.running_mean is not None and not norm.running_mean.any() for norm in norms)
    trained = net.backbone.body.state_dict()["stages_0.0.weight"]
    assert not torch.equal(trained, own.state_dict()["stages_0.0.weight"])  # the convolutions have learned
    assert cpn(["export", str(run.path), "--output", str(tmp_path / "m.onnx"), "--scales", "1", "--no-flip"]) == 0
    source = cpn_fast.open_source(f"demo:{small_demo}")
    image = source.read(source.records("val")[0]).image[:50, :77]  # sides that the strides do not divide
    name = source.classes[0]
    ours = cpn_fast.load(run.path).labeller(scales=(1,), flip=False, device="cpu")(image, [name])
    theirs = cpn_fast.load(tmp_path / "m.onnx").labeller()(image, [name])
    assert np.abs(ours.maps - theirs.maps).max() < 1e-3 and ours.maps.max() > 0.9
    assert (ours.mask == theirs.mask).mean() > 0.995


def test_a_vision_transformer_is_trained_and_labels(small_demo: Path, tmp_path: Path) -> None:
    """A network of full size from the command line; crops of 40 pixels are padded to 48."""
    run = RunFolder(tmp_path / "run")
    words = ["--backbone", "vit_small_patch16", "--crop", "40", "--max-steps", "2", "--method", "cpn"]
    assert train(small_demo, run.path, *words) == 0
    losses = [record["loss"] for record in run.records("step")]
    assert len(losses) == 2 and np.isfinite(losses).all()
    source = cpn_fast.open_source(f"demo:{small_demo}")
    image = source.read(source.records("val")[0]).image[:50, :77]
    found = cpn_fast.load(run.path).labeller(scales=(1,), flip=False, device="cpu")(image, [source.classes[0]])
    assert found.mask.shape == (50, 77) and set(np.unique(found.mask)) <= {0, 1} and found.maps.max() > 0.9
