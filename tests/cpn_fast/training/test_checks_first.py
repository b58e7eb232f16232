"""Nothing is written before everything that can be checked has been; what cannot be learned or scored is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.affinity.command import run_affinity
from cpn_fast.cam.task import run_train
from cpn_fast.cli.main import main
from cpn_fast.config.training import (
    AffinityConfig,
    AugmentOptions,
    LoopOptions,
    SegmentAugment,
    SegmentConfig,
    SegmentLoop,
    TrainConfig,
    TrainingConfig,
)
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.task import run_segment_train
from tests.cpn_fast.segment.voc_squares import make
from tests.grouped import grouped

SMALL = {"backbone": "resnet38_tiny", "epochs": 1, "batch_size": 2, "workers": 0, "lr": 1e-4, "accelerator": "cpu"}
KINDS = ("cam", "affinity", "segment")
Begin = Callable[..., RunFolder]


@pytest.fixture
def begin(tmp_path: Path, make_labelling: Callable[..., Path]) -> Begin:
    """`begin(kind, **changes)` trains two steps on data that the test may have changed."""
    data, masks = make(tmp_path / "voc"), make_labelling(tmp_path / "masks")

    def run(kind: str, **changes: object) -> RunFolder:
        loop = SegmentLoop if kind == "segment" else LoopOptions
        values = grouped({"output": tmp_path / "run", **SMALL, **changes}, loop)
        if kind == "affinity":
            return run_affinity(AffinityConfig(masks=masks, **{"augment": AugmentOptions(32, (40, 70)), **values}))
        if kind == "segment":
            return run_segment_train(
                SegmentConfig(data=f"voc:{data}", masks="truth", **{"augment": SegmentAugment(crop=48), **values})
            )
        return run_train(TrainConfig(data=f"voc:{data}", method="cam", **{"augment": AugmentOptions(48), **values}))

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": Path("mistyped.safetensors")}, r"mistyped\.safetensors"),
        ({"data": "folder:nowhere"}, "nowhere"),
        ({"batch_size": 0}, "--batch-size"),
    ],
)
def test_mistake_leaves_no_folder(
    kind: str, changes: dict[str, object], message: str, begin: Begin, tmp_path: Path
) -> None:
    if "data" in changes and kind != "affinity":
        config: TrainingConfig = TrainConfig(data="folder:nowhere", output=tmp_path / "run", **grouped(SMALL))
        if kind == "segment":
            config = SegmentConfig(
                data="folder:nowhere", masks="truth", output=tmp_path / "run", **grouped(SMALL, SegmentLoop)
            )
        with pytest.raises(DataError, match=message):
            (run_segment_train if kind == "segment" else run_train)(config)  # type: ignore[operator]
    else:
        with pytest.raises(DataError, match=message):
            begin(kind, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["cam", "segment"])
def test_unknown_validation_split_leaves_no_folder(kind: str, begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nonsense"):
        begin(kind, val_split="nonsense")
    assert not (tmp_path / "run").exists()
    assert begin(kind, eval_every=0).model_path.is_file(), "the corrected command takes the same folder"


COMMANDS = {
    "label": ["label", "{no}", "--data", "voc:{voc}", "--output", "{out}"],
    "label: no such data": ["label", "{run}", "--data", "folder:{no}", "--output", "{out}"],
    "refine": ["refine", "{no}", "--crf", "--output", "{out}"],
    "refine: no such run": ["refine", "{masks}", "--random-walk", "{no}", "--output", "{out}"],
    "segment predict": ["segment", "predict", "{no}", "--data", "voc:{voc}", "--output", "{out}"],
    "evaluate": ["evaluate", "{no}", "--data", "voc:{voc}", "--output", "{out}"],
    "convert": ["convert", "{no}", "--format", "coco", "--output", "{out}/masks.json"],
    "export": ["export", "{no}", "--output", "{out}/model.onnx"],
    "report": ["report", "{no}", "--output", "{out}/report.html"],
    "run": ["run", "--data", "voc:{voc}", "--weights", "{no}", "--backbone", "resnet38_tiny", "--output", "{out}"],
    "run: no such data": ["run", "--data", "folder:{no}", "--backbone", "resnet38_tiny", "--output", "{out}"],
    "reproduce": ["reproduce", "table1", "--data", "folder:{no}", "--output", "{out}"],
    "demo": ["demo", "--data", "demo:{no}", "--seeds", "0", "--output", "{out}"],
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_mistyped_command_leaves_no_folder(
    name: str,
    make_run: Callable[..., RunFolder],
    make_labelling: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {key: tmp_path / key for key in ("no", "out", "voc", "run", "masks")}
    make(places["voc"])
    make_run(places["run"])
    make_labelling(places["masks"])
    assert main([word.format(**places) for word in COMMANDS[name]]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not places["out"].exists()


@pytest.mark.parametrize("value", [255, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_without_any_class_end_no_training_and_give_no_score(
    kind: str,
    value: int,
    begin: Begin,
    tmp_path: Path,
    make_labelling: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The validation's masks of cam and segment, and the truth of AffinityNet's walk, have no pixel of any class."""
    changes: dict[str, object] = {}
    if kind == "affinity":
        labelled = json.loads((tmp_path / "masks/manifest.jsonl").read_text().splitlines()[0])
        photos = Path(labelled["image"]).parent
        source = tmp_path / "photos"
        (source / "images").mkdir(parents=True)
        (source / "masks").mkdir()
        for image in sorted(photos.glob("*.png")):
            (source / "images" / image.name).write_bytes(image.read_bytes())
            Image.fromarray(np.full((40, 56), value, np.uint8)).save(source / "masks" / image.name)
        (source / "labels.csv").write_text("image,labels\n" + "".join(f"{i}.png,red\n" for i in range(4)))
        (source / "classes.txt").write_text("red\ngreen\nunseen\n")
        changes["data"] = f"folder:{source}"
    else:
        for path in (tmp_path / "voc/SegmentationClass").glob("val_*.png"):
            with Image.open(path) as mask:
                size = mask.size
            Image.new("L", size, value).save(path)
    run = begin(kind, **changes)
    assert run.model_path.is_file()
    (record,) = run.records("eval")
    figures = {key: value for key, value in record.items() if key.endswith("miou")}
    assert figures and set(figures.values()) == {None}
    if kind != "affinity":
        assert "no mIoU is given" in caplog.text


def test_batch_of_one_position_is_refused(begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--batch-size 1 with --crop 16: .*stride 16"):
        begin("segment", batch_size=1, backbone="mobilenet_v2", augment=SegmentAugment(crop=16))
    assert not (tmp_path / "run").exists()
    assert begin("segment", batch_size=1, max_steps=1, augment=SegmentAugment(crop=17)).records("step")


def test_no_weights_and_what_it_takes_are_said(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        begin("cam", max_steps=1)
    assert "no --weights: the backbone resnet38_tiny begins with random numbers" in caplog.text
    assert "for 1 steps and" in caplog.text and "GiB of memory at the peak" in caplog.text


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["segment", "--help"]])
def test_reader_that_stops_to_read_is_no_fault(words: list[str]) -> None:
    """As `cpn ... --help | head -0` does: the pipe is closed before anything is written."""
    command = [sys.executable, "-m", "cpn_fast.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(120) == 141 and said == ""
