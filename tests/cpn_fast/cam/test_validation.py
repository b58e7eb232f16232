"""Validation curves, map statistics and what a run writes while it trains."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cpn_fast.cam.task import run_train
from cpn_fast.cam.validation import create_validator
from cpn_fast.config.training import AugmentOptions, MethodOptions, PatchOptions, TrainConfig, replace_dotted
from cpn_fast.console.progress import TrainProgress
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.metrics.classification import average_precision, classifier_scores
from cpn_fast.models import create_model
from cpn_fast.models.labeller import Labeller
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.tensorboard import MapStatistics, map_record
from tests.grouped import grouped


@pytest.mark.parametrize("levels", [3, 1000])
def test_scores_against_sklearn(levels: int) -> None:
    """Few levels give many ties."""
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (40, 6)) / levels
    truth = rng.random((40, 6)) < 0.3
    truth[:, 4] = False
    present = [0, 1, 2, 3, 5]
    expected = [average_precision_score(truth[:, k], scores[:, k]) for k in present]
    assert [average_precision(scores[:, k], truth[:, k]) for k in present] == pytest.approx(expected)
    found = classifier_scores(scores, truth)
    assert found["map"] == pytest.approx(np.mean(expected))
    assert found["f1"] == pytest.approx(f1_score(truth, scores > 0.5, average="micro"))
    assert classifier_scores(scores, np.zeros_like(truth)) == {"map": None, "f1": None}
    # A class that every image has would be perfect whatever the scores, and is left out of the mean.
    truth[:, 0] = True
    rest = [k for k in range(1, truth.shape[1]) if truth[:, k].any()]
    expected = np.mean([average_precision(scores[:, k], truth[:, k]) for k in rest])
    assert classifier_scores(scores, truth)["map"] == pytest.approx(expected)
    assert classifier_scores(scores, np.ones_like(truth))["map"] is None


def config(demo: Path, output: Path, **changes: object) -> TrainConfig:
    values: dict = {
        "data": f"demo:{demo}", "output": output, "backbone": "resnet38_tiny", "epochs": 2, "batch_size": 4,
        "lr": 0.01, "momentum": 0.9,
        "workers": 0, "log_every": 2, "val_images": 3, "accelerator": "cpu", "augment": AugmentOptions(crop=64),
        "patch": PatchOptions(kind="grid"), **changes,
    }  # fmt: skip
    return TrainConfig(**grouped(values))


def test_miou_by_hand_and_training_mode_kept(small_demo: Path, tmp_path: Path) -> None:
    settings = config(small_demo, tmp_path)
    source = open_source(settings.data)
    torch.manual_seed(0)
    net = create_model(settings, len(source.classes)).train()
    modes = [module.training for module in net.modules()]
    curves = create_validator(source, settings, source.records("train"))
    result = curves.evaluate(net, torch.device("cpu"))
    assert [module.training for module in net.modules()] == modes
    assert False in modes and True in modes  # frozen batch norms and the rest

    labeller = Labeller(net, scales=(1.0,), flip=False)
    confusion = {beta: np.zeros((9, 9)) for beta in (result.values["rcam_beta"], 0.9)}
    for sample in curves._samples:
        assert max(sample.image.shape[:2]) == 64 and sample.mask.shape == sample.image.shape[:2]
        with torch.no_grad():
            out = labeller(torch.from_numpy(sample.image)[None], torch.from_numpy(sample.labels)[None])
        for beta, matrix in confusion.items():
            maps = torch.cat([torch.full_like(out.rcam[:, :1], beta), out.rcam], 1)[0]
            valid = sample.mask != 255
            matrix += confusion_matrix(sample.mask[valid], maps.argmax(0).numpy()[valid], labels=range(9))

    def miou(matrix: np.ndarray) -> float:
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        return float((matrix.diagonal()[union > 0] / union[union > 0]).mean())

    best, other = (miou(matrix) for matrix in confusion.values())
    assert result.values["rcam_miou"] == pytest.approx(best)
    assert best >= other
    assert result.values["images"] == 3 == len(result.pictures)
    for picture in result.pictures.values():
        assert picture.dtype == np.uint8 and picture.shape[1] % 4 == 0


def test_curves_need_a_split_that_exists(small_demo: Path, tmp_path: Path) -> None:
    settings = config(small_demo, tmp_path, val_split="nonsense")
    source = open_source(settings.data)
    with pytest.raises(DataError, match="nonsense"):
        create_validator(source, settings, source.records("train"))
    assert create_validator(source, config(small_demo, tmp_path, eval_every=0), ()) is None


def test_map_statistics_by_hand() -> None:
    statistics = MapStatistics(3, torch.device("cpu"))
    maps = torch.zeros(2, 3, 1, 4)
    maps[0, 0, 0] = torch.tensor([0.2, 0.6, 0.9, 0.1])
    maps[1, 0, 0] = torch.tensor([0.3, 0.3, 0.3, 0.7])
    maps[1, 1, 0] = torch.tensor([1.0, 1.0, 1.0, 1.0])
    statistics.update("cam", maps[:1], torch.tensor([[1.0, 0, 0]]))
    statistics.update("cam", maps[1:], torch.tensor([[1.0, 1, 0]]))
    record = map_record(statistics.take()["cam"])
    assert record["min"] == pytest.approx([0.1, 1.0, None])
    assert record["mean"] == pytest.approx([0.425, 1.0, None])
    assert record["area"] == pytest.approx([0.375, 1.0, None])
    assert statistics.take() == {}


def test_a_warm_up_in_epochs_has_a_learning_rate_of_its_own(small_demo: Path, tmp_path: Path) -> None:
    options = MethodOptions(warm_up=0.9, warm_up_epochs=1)
    run = run_train(config(small_demo, tmp_path / "run", options=options, epochs=3, max_steps=7, eval_every=0))
    steps = run.records("step")
    assert ["tcp" in record for record in steps] == [False] * 3 + [True] * 4  # three steps an epoch
    rates = [0.01 * (1 - n / 3) ** 0.9 for n in range(3)] + [0.01 * (1 - n / 6) ** 0.9 for n in range(4)]
    assert [record["lr"] for record in steps] == pytest.approx(rates)


def test_a_run_writes_records_board_and_weights(small_demo: Path, tmp_path: Path) -> None:
    settings = config(small_demo, tmp_path / "run", options=MethodOptions(warm_up=0.0))
    run = run_train(settings)
    steps = run.records("step")
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record["epoch"] for record in steps] == [0, 0, 0, 1, 1, 1]
    assert [r["lr"] for r in steps] == pytest.approx([0.01 * (1 - n / 6) ** 0.9 for n in range(6)])
    for record in steps:
        assert record["loss"] == pytest.approx(record["cls"] + record["tcp"] + record["cpcr"], abs=1e-5)
        assert record["images_per_second"] == pytest.approx(4 / record["seconds"])
        assert 50 < record["peak_memory_mib"] < 100_000
    assert [record["epoch"] for record in run.records("eval")] == [1, 2]
    maps = run.records("maps")
    assert [record["step"] for record in maps] == [2, 4, 6]
    assert len(maps[0]["cam"]["mean"]) == len(maps[0]["rcam"]["area"]) == 8

    events = EventAccumulator(str(run.tensorboard_path), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"loss/loss", "loss/tcp", "train/lr", "train/images_per_second", "val/cam_miou"} <= set(tags["scalars"])
    assert any(tag.startswith("rcam_area/") for tag in tags["scalars"])
    assert len(tags["images"]) == 3
    assert [event.step for event in events.Scalars("loss/cls")] == [2, 4, 6]
    assert events.Scalars("loss/cls")[0].value == pytest.approx(steps[1]["cls"])

    content = json.loads(run.config_path.read_text())
    assert content["classes"] == list(run.classes) and content["versions"]["torch"]
    chosen = {"precision": "32-true", "compile": "off", "trial_step": "off"}  # what was left to the machine, a CPU
    assert run.config == replace_dotted(settings, chosen)
    net = RunFolder(run.path).load_model()
    state = torch.load(run.checkpoint_path, weights_only=True)["model"]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not net.training


def test_hidden_colour_of_the_data_travels_with_the_weights(small_demo: Path, tmp_path: Path) -> None:
    settings = config(small_demo, tmp_path / "run", hidden_colour="dataset", max_steps=1, eval_every=0)
    run = run_train(settings)
    source = open_source(settings.data)
    pixels = np.concatenate([source.read(r).image.reshape(-1, 3) for r in source.records("train")])
    assert run.load_model().mean.tolist() == pytest.approx((pixels.mean(axis=0) / 255).tolist(), abs=1e-6)
    resumed = run_train(replace_dotted(settings, {"resume": True, "max_steps": 2}))
    assert resumed.load_model().mean.tolist() == run.load_model().mean.tolist()


def test_bf16_is_near_float32(small_demo: Path, tmp_path: Path) -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        settings = config(small_demo, tmp_path / precision, precision=precision, max_steps=1, eval_every=0)
        run = run_train(settings)
        assert all(value.dtype == torch.float32 for value in run.load_model().state_dict().values() if value.ndim)
        losses.append(run.records("step")[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1] != losses[0]


def test_progress_shows_parts_rate_and_memory() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200)
    with TrainProgress(10, 4, batch_size=8, log_every=2, console=console, losses=("loss", "tcp")) as progress:
        for step in (5, 6, 7):
            progress.step({"step": step, "loss": 1.25, "tcp": 0.125, "peak_memory_mib": 1536.0, "seconds": 1.0})
            time.sleep(0.12)  # the bar is redrawn ten times a second
        progress.message("a line")
    shown = text.getvalue()
    for part in ("7/10", "loss 1.250 tcp 0.125 | peak 1.5 GiB", "images/s", "left", "a line"):
        assert part in shown
