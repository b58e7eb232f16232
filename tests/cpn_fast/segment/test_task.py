"""`cpn segment train`: loss and batches against what is worked out by hand, learning, resuming, two processes."""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from cpn_fast.cli import main as cli
from cpn_fast.config.training import OptimizerOptions, SegmentAugment, SegmentConfig, SegmentLoop
from cpn_fast.data.loading.steps import Span
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import VOID
from cpn_fast.files.errors import DataError
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.deeplab import DeepLab, norm_momentum
from cpn_fast.runs.checkpoint import load_checkpoint
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.batches import SegmentBatch, SegmentStream
from cpn_fast.segment.loss import PixelClassification, pixel_cross_entropy
from cpn_fast.segment.masks import open_masks
from cpn_fast.segment.options import parse
from cpn_fast.segment.task import SegmentTask, run_segment_train
from cpn_kernels.ops.cp_triplet import normalise_images
from tests.cpn_fast.segment.voc_squares import COLOURS, make
from tests.grouped import grouped

PLAIN = SegmentAugment(crop=64, resize=(64, 64), flip=False, jitter=(0.0, 0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four train and three val images; do not change it."""
    return make(tmp_path_factory.mktemp("squares") / "voc")


def config(data: Path, output: Path, **changes: object) -> SegmentConfig:
    values: dict = {
        "data": f"voc:{data}",
        "output": output,
        "masks": "truth",
        "backbone": "resnet38_tiny",
        "epochs": 6,
        "lr": 0.01,
        "batch_size": 4,
        "workers": 0,
        "eval_every": 0,
        "accelerator": "cpu",
        "augment": SegmentAugment(crop=48),
        **changes,
    }
    return SegmentConfig(**grouped(values, SegmentLoop))


# --- the loss


def test_cross_entropy_is_a_mean_over_known_pixels_then_over_images() -> None:
    """Three images: a few void pixels, many, nothing but void."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 5, 7, 6))
    targets = rng.integers(0, 5, (3, 7, 6))
    targets[0, :2], targets[1, 1:], targets[2] = VOID, VOID, VOID
    means = []
    for image in range(3):
        losses = []
        for row in range(7):
            for column in range(6):
                if targets[image, row, column] != VOID:
                    pixel = logits[image, :, row, column]
                    losses.append(np.log(np.exp(pixel).sum()) - pixel[targets[image, row, column]])
        means.append(sum(losses) / len(losses) if losses else 0.0)

    given = torch.from_numpy(logits).float().requires_grad_()
    loss = pixel_cross_entropy(given, torch.from_numpy(targets.astype(np.uint8)))
    assert math.isclose(loss.item(), sum(means) / 3, rel_tol=1e-6)
    loss.backward()
    gradient = given.grad
    assert gradient is not None and torch.isfinite(gradient).all()
    assert not gradient[2].any() and not gradient[0, :, :2].any() and gradient[0, :, 2:].all()


def test_logits_are_enlarged_to_the_targets() -> None:
    torch.manual_seed(0)
    net = DeepLab(create_backbone("resnet38_tiny", frozen=False), 3, dropout=0.0).eval()
    images = torch.randint(0, 256, (2, 48, 40, 3), dtype=torch.uint8)
    targets = torch.randint(0, 4, (2, 48, 40), dtype=torch.uint8)
    with torch.no_grad():
        loss = PixelClassification(net)(images, targets)["loss"]
        logits = net(normalise_images(images, net.mean)).double()
        assert logits.shape[2:] == (6, 5)
        large = F.interpolate(logits, size=(48, 40), mode="bilinear", align_corners=False)
        expected = F.cross_entropy(large, targets.long())  # without void both means are the same
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-5)


# --- the batches


def test_targets_follow_the_images_and_padding_is_void(squares: Path) -> None:
    """Every known pixel but those next to a border shows its class's colour; what shows no image is void."""
    source = open_source(f"voc:{squares}")
    augment = SegmentAugment(crop=64, resize=(32, 96), flip=True, jitter=(0.0, 0.0, 0.0, 0.0))
    settings = config(squares, Path("unused"), augment=augment)
    stream = SegmentStream(open_masks("truth", source), source.records("train"), settings, Span(0, 12), (255, 0, 255))
    assert len(stream) == 12
    padded = agreeing = seen = 0
    for batch in stream:
        assert batch.images.shape == (4, 64, 64, 3) and batch.images.dtype == torch.uint8
        assert batch.targets.shape == (4, 64, 64) and batch.targets.dtype == torch.uint8
        images, targets = batch.images.numpy().astype(int), batch.targets.numpy()
        padding = (images == (255, 0, 255)).all(axis=3)
        padded += padding.sum()
        assert (targets[padding] == VOID).all()
        nearest = np.abs(images[..., None, :] - COLOURS.astype(int)).sum(axis=-1).argmin(axis=-1)
        known = targets != VOID
        agreeing += (nearest[known] == targets[known]).sum()
        seen += known.sum()
    assert padded > 10_000
    assert agreeing / seen > 0.97  # cubic and nearest-neighbour borders differ by a pixel


def test_default_range_of_the_long_side_is_half_to_one_and_a_half_of_vocs() -> None:
    assert SegmentAugment().resize_range() == (250, 750)
    assert SegmentAugment(crop=224).resize_range() == (125, 375)
    assert SegmentAugment(resize=(10, 20)).resize_range() == (10, 20)


# --- training


@pytest.mark.slow
def test_learns_the_colours(squares: Path, tmp_path: Path) -> None:
    """Also: curves, and the statistics of batch norms as quick as a short training needs them."""
    run = run_segment_train(
        config(
            squares,
            tmp_path / "run",
            epochs=80,
            lr=0.05,
            eval_every=40,
            augment=PLAIN,
            dropout=0.0,
            val_split="train",
        )
    )
    evals = run.records("eval")
    assert [record["step"] for record in evals] == [40, 80]
    assert evals[-1]["images"] == 4
    assert evals[-1]["miou"] > 0.9, evals
    assert run.records("step")[-1]["loss"] < 0.3 < run.records("step")[0]["loss"]
    net = run.load_deeplab()
    assert net.num_classes == 20
    fresh = DeepLab(create_backbone("resnet38_tiny", frozen=False), 20)
    assert norm_momentum(80) > 0.07 > fresh.norm_mix.momentum


@pytest.mark.slow
def test_interrupted_run_resumes_bit_equal(squares: Path, tmp_path: Path) -> None:
    """Weights, momentum and the running statistics of batch norms; with another number of workers."""
    whole = run_segment_train(config(squares, tmp_path / "whole", eval_every=3))
    run_segment_train(config(squares, tmp_path / "parts", eval_every=3, max_steps=2))
    parts = run_segment_train(config(squares, tmp_path / "parts", eval_every=3, resume=True, workers=2))
    one, two = (load_checkpoint(run.checkpoint_path) for run in (whole, parts))
    assert one["step"] == two["step"] == 6
    assert set(one["model"]) == set(two["model"])
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    for first, second in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True):
        assert torch.equal(first["momentum_buffer"], second["momentum_buffer"])
    assert one["model"]["norm_fov.running_mean"].any() and one["model"]["backbone.bn7.running_mean"].any()
    assert [r["loss"] for r in whole.records("step")] == [r["loss"] for r in parts.records("step")]
    assert [r["step"] for r in parts.records("eval")] == [2, 3, 6]  # where it stopped, too
    assert whole.records("eval") == parts.records("eval")[1:]
    assert all(
        torch.equal(value, load_file(parts.model_path)[key]) for key, value in load_file(whole.model_path).items()
    )


@pytest.mark.slow
def test_two_processes_average_their_halves(squares: Path, tmp_path: Path) -> None:
    """Each normalises by its own half; gradients are averaged, running statistics are the first process's."""
    arguments = ["--data", f"voc:{squares}", "--masks", "truth", "--backbone", "mobilenet_v2", "--crop", "64"]
    arguments += ["--batch-size", "4", "--lr", "0.01", "--epochs", "1", "--workers", "0", "--dropout", "0"]
    arguments += ["--weight-decay", "0", "--eval-every", "0", "--accelerator", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*launcher, "-m", "cpn_fast.cli", "segment", "train", *arguments, "--output", str(tmp_path / "pair")],
        check=True, timeout=240,
    )  # fmt: skip
    pair = load_checkpoint(RunFolder(tmp_path / "pair").checkpoint_path)
    assert pair["step"] == 1

    settings = parse([*arguments, "--output", str(tmp_path / "single")])
    single = run_segment_train(
        replace(settings, optimizer=OptimizerOptions(lr=1e-30, momentum=0.9))
    )  # leaves the initial weights, but for the statistics
    start = load_checkpoint(single.checkpoint_path)["model"]
    source = open_source(settings.data)
    gradients, statistics = [], []
    for rank in range(2):
        net = DeepLab(create_backbone("mobilenet_v2", frozen=False), 20, dropout=0.0)
        net.load_state_dict({name: _initial(name, value) for name, value in start.items()})
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = norm_momentum(1)
        (batch,) = SegmentStream(open_masks("truth", source), source.records("train"), settings, Span(0, 1, rank, 2))
        module = PixelClassification(net).to(memory_format=torch.channels_last).train()
        module(batch.images, batch.targets)["loss"].backward()
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
        statistics.append(net.state_dict()["norm_fov.running_mean"])

    groups = pair["optimizer"]["param_groups"]
    found = [pair["optimizer"]["state"][index]["momentum_buffer"] for group in groups for index in group["params"]]
    expected = [
        (gradients[0][name] + gradients[1][name]) / 2
        for is_head, is_bias in ((False, False), (False, True), (True, False), (True, True))
        for name in gradients[0]
        if (not name.startswith("backbone."), name.endswith("bias")) == (is_head, is_bias)
    ]
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * max(two.abs().max().item(), 1e-6))
    torch.testing.assert_close(pair["model"]["norm_fov.running_mean"], statistics[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(statistics[0], statistics[1], rtol=1e-2)


def _initial(name: str, value: torch.Tensor) -> torch.Tensor:
    """What a batch norm's statistics begin with; other tensors as they are."""
    begin = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}.get(name.rpartition(".")[2])
    return value if begin is None else torch.full_like(value, begin)


@pytest.mark.parametrize(
    ("norms", "folded", "frozen"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("frozen", False, True),
        ("train", True, False),
        ("train", False, False),
    ],
)
def test_batch_norms_without_statistics_stay_frozen(
    squares: Path, tmp_path: Path, norms: str, folded: bool, frozen: bool
) -> None:
    """Folded into the convolutions they are the identity and a bias, which a batch's statistics would undo."""
    torch.manual_seed(1)
    weights = create_backbone("resnet38_tiny").state_dict()
    for name, value in weights.items():
        if name.endswith("running_mean") and not folded:
            value += torch.randn_like(value) / 10
        if name.endswith("running_var"):
            value.fill_(0.99999 if folded else 0.8)
    save_file(weights, tmp_path / "weights.safetensors")
    given = {"norms": norms, "weights": tmp_path / "weights.safetensors", "max_steps": 1}
    run = run_segment_train(config(squares, tmp_path / "run", **given))
    trained = load_file(run.model_path)
    norm_keys = [key for key in weights if "running_" in key or ("bn" in key and key.endswith(("weight", "bias")))]
    same = [torch.equal(trained[f"backbone.{key}"], weights[key]) for key in norm_keys]
    assert len(same) > 100 and (all(same) if frozen else not all(same))
    assert not torch.equal(trained["backbone.conv1a.weight"], weights["conv1a.weight"])
    assert trained["norm_fov.running_mean"].any()  # the head's always train


# --- what can be wrong


@pytest.mark.parametrize("workers", [0, 2])
def test_mask_that_goes_in_the_middle_is_one_line_and_the_rerun_goes_on(
    squares: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = shutil.copytree(squares / "SegmentationClass", tmp_path / "masks")
    start, arguments = SegmentTask.stream, ["segment", "train", "--output", str(tmp_path / "run")]

    def stream(stage: SegmentTask, net: torch.nn.Module, span: Span) -> Iterable[SegmentBatch]:
        (masks / "train_2.png").unlink()
        return start(stage, net, span)

    given = ["--data", f"voc:{squares}", "--masks", str(masks), "--backbone", "resnet38_tiny", "--crop", "48"]
    given += ["--batch-size", "2", "--epochs", "1", "--eval-every", "0", "--workers", str(workers)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentTask, "stream", stream)
        assert cli.main([*arguments, *given]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {masks / 'train_2.png'}: no such file; expected an image"
    assert cli.main([*arguments, "--resume"]) == 2
    assert "1 of 4 images have no mask" in capsys.readouterr().err
    shutil.copy(squares / "SegmentationClass" / "train_2.png", masks)
    assert cli.main([*arguments, "--resume"]) == 0
    assert [record["step"] for record in RunFolder(tmp_path / "run").records("step")] == [1, 2]


def test_resume_keeps_to_the_runs_masks(squares: Path, tmp_path: Path) -> None:
    run_segment_train(config(squares, tmp_path / "run", max_steps=1))
    with pytest.raises(DataError, match=r"other settings: masks \(run: 'truth', now: '.*other'\)"):
        run_segment_train(config(squares, tmp_path / "run", masks=str(tmp_path / "other"), resume=True))
    resumed = parse(["--output", str(tmp_path / "run"), "--resume"])
    assert resumed.masks == "truth" and resumed.loop.resume and resumed.augment.crop == 48


def test_trains_on_the_accepted_masks_alone(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rejected mask may be broken: nobody opens it."""
    pseudo = tmp_path / "pseudo"
    shutil.copytree(squares / "SegmentationClass", pseudo / "SegmentationClass")
    ids = [record.id for record in open_source(f"voc:{squares}").records("train")]
    (pseudo / "SegmentationClass" / f"{ids[0]}.png").write_bytes(b"broken")
    (pseudo / "review.csv").write_text("name,decision\n" + "".join(f"{name},accepted\n" for name in ids[1:]))
    caplog.set_level(logging.INFO)
    options = {"masks": str(pseudo), "max_steps": 1, "batch_size": 3}
    run = run_segment_train(config(squares, tmp_path / "run", only="accepted", **options))
    assert [record["step"] for record in run.records("step")] == [1]
    assert f"3 of 4 images: those whose mask is accepted by {pseudo / 'review.csv'}" in caplog.text
    with pytest.raises(DataError, match="not an image"):
        run_segment_train(config(squares, tmp_path / "all", **options))
    arguments = ["segment", "train", "--data", f"voc:{squares}", "--output", str(tmp_path / "x"), "--masks", "truth"]
    assert cli.main([*arguments, "--review", "r.csv"]) == 2
    assert "--review r.csv: say what of it to take, e.g. --only accepted" in capsys.readouterr().err


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_out_of_range(squares: Path, tmp_path: Path, dropout: float) -> None:
    with pytest.raises(DataError, match=f"--dropout {dropout}"):
        run_segment_train(config(squares, tmp_path / "run", dropout=dropout))
    assert not (tmp_path / "run").exists()
