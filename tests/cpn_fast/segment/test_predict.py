"""`cpn segment predict`: masks against the network and the CRF called by hand, and everything that can go wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cpn_fast.files.mask_folder as mask_folder_module
import cpn_fast.segment.predict as predict_module
from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.config.training import SegmentConfig
from cpn_fast.data.sources.demo_scenes import CLASSES
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.voc import VOC_CLASSES
from cpn_fast.files import disk_space
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_labelmap, read_mask
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.files.palette import voc_palette
from cpn_fast.models.build import create_deeplab
from cpn_fast.models.segmenter import Segmenter
from cpn_fast.report.command import ReportConfig, run_report
from cpn_fast.runs.folder import RunFolder
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_fast.segment.predict import PredictConfig, run_segment_predict
from cpn_kernels.ops.cp_triplet import normalise_images
from cpn_kernels.ops.dense_crf import AFFINITY_LABELS, SEGMENTATION, dense_crf
from tests.cpn_fast.segment.voc_squares import make

SCALES = (0.5, 1.0)


def make_segment_run(path: Path, data: Path, classes: tuple[str, ...] = VOC_CLASSES) -> Path:
    """A run folder with weights that have seen nothing, but give every class its share."""
    settings = SegmentConfig(data=f"voc:{data}", output=path, masks="truth", backbone="resnet38_tiny")
    torch.manual_seed(0)
    net = create_deeplab(settings, len(classes))
    image = torch.from_numpy(np.array(Image.open(data / "JPEGImages" / "val_4.png")))[None]
    with torch.no_grad():
        logits = net.eval()(normalise_images(image, net.mean))
        net.classifier.weight *= 1.5 / logits.std(dim=(2, 3)).mean()
        net.classifier.bias -= net(normalise_images(image, net.mean)).mean(dim=(0, 2, 3))
    run = RunFolder(path)
    run.create(settings, classes)
    run.save_model(net, 0)
    return path


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A data set to change."""
    return make(tmp_path / "voc")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segment")
    return make_segment_run(folder / "run", make(folder / "voc"))


def config(run: Path, data: Path, **more: object) -> PredictConfig:
    values: dict = {"scales": SCALES, "device": "cpu", "output": data.parent / "masks", **more}
    return PredictConfig(run, f"voc:{data}", **values)


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def by_hand(run: Path, data: Path, max_side: int = 1024) -> dict[str, tuple[np.ndarray, torch.Tensor]]:
    """Image as the network sees it and probabilities [1, K + 1, h, w], by id."""
    segmenter = Segmenter(RunFolder(run).load_deeplab(), SCALES, flip=True)
    found = {}
    for path in sorted((data / "JPEGImages").glob("val_*.png")):
        image = reduce_image(np.array(Image.open(path)), max_side).copy()
        with torch.no_grad():
            found[path.stem] = image, segmenter.probabilities(torch.from_numpy(image)[None])
    return found


def check_winners(mask: np.ndarray, probabilities: torch.Tensor, channels: list[int] | None = None) -> None:
    """Every pixel has the most probable class; equally probable ones may be told apart by rounding, which is rare."""
    assert mask.shape == probabilities.shape[2:]
    values = np.arange(probabilities.shape[1]) if channels is None else np.array(channels)
    best, winner = (part[0].numpy() for part in probabilities.max(dim=1))
    assert set(np.unique(mask)) <= set(values)
    chosen = np.take_along_axis(probabilities[0].numpy(), np.searchsorted(values, mask)[None], axis=0)[0]
    assert (best - chosen).max() < 1e-4
    assert (values[winner] == mask).mean() > 0.999


def test_masks_are_the_networks_in_voc_layout(run: Path, squares: Path, tmp_path: Path) -> None:
    summary = run_segment_predict(config(run, squares, batch_size=2))
    assert (summary.written, summary.skipped, summary.failed) == (3, 0, 0)
    assert read_labelmap(tmp_path / "masks" / "labelmap.txt") == VOC_CLASSES
    entries = {entry["id"]: entry for entry in lines(tmp_path / "masks")}
    expected = by_hand(run, squares)
    assert set(entries) == set(expected) and len(expected) == 3
    for name, (image, probabilities) in expected.items():
        path = tmp_path / "masks" / "SegmentationClass" / f"{name}.png"
        mask = read_mask(path)
        check_winners(mask, probabilities)
        palette = Image.open(path).getpalette()
        assert palette is not None and np.array_equal(np.reshape(palette, (-1, 3)), voc_palette())
        assert len(np.unique(mask)) > 2
        entry = entries[name]
        assert (entry["status"], entry["labels"]) == ("ok", None)
        assert (entry["height"], entry["width"]) == image.shape[:2]
        assert entry["predicted"] == [VOC_CLASSES[value - 1] for value in np.unique(mask) if value]
        assert entry["foreground"] == round(float((mask > 0).mean()), 4)
    settings = json.loads((tmp_path / "masks" / "settings.json").read_text())
    assert settings["crf"] is None and settings["scales"] == list(SCALES) and settings["flip"] is True


@pytest.mark.parametrize("preset", ["segmentation", "affinity"])
def test_crf_is_the_one_called_by_hand(run: Path, squares: Path, tmp_path: Path, preset: str) -> None:
    run_segment_predict(config(run, squares, crf=True, crf_preset=preset, iterations=3, bilateral_compat=4.0))
    crf = replace(SEGMENTATION if preset == "segmentation" else AFFINITY_LABELS, iterations=3, bilateral_compat=4.0)
    changed = {entry["id"]: entry["changed"] for entry in lines(tmp_path / "masks")}
    for name, (image, probabilities) in by_hand(run, squares).items():
        refined = dense_crf(torch.from_numpy(image)[None], probabilities, **asdict(crf))
        check_winners(read_mask(tmp_path / "masks" / "SegmentationClass" / f"{name}.png"), refined)
        share = (refined.argmax(dim=1) != probabilities.argmax(dim=1)).float().mean().item()
        assert changed[name] == pytest.approx(share, abs=2e-3) and share > 0.01
    assert json.loads((tmp_path / "masks" / "settings.json").read_text())["crf"] == asdict(crf)


@pytest.mark.parametrize("crf", [False, True])
def test_labels_limit_the_masks(run: Path, squares: Path, tmp_path: Path, crf: bool) -> None:
    run_segment_predict(config(run, squares, use_labels=True, crf=crf, iterations=2, bilateral_compat=0.5))
    records = open_source(f"voc:{squares}").records("val")
    entries = {entry["id"]: entry for entry in lines(tmp_path / "masks")}
    foreground = 0
    for record, (image, probabilities) in zip(records, by_hand(run, squares).values(), strict=True):
        assert record.labels is not None and len(record.labels) == 2
        channels = [0, *(label + 1 for label in record.labels)]
        part = probabilities[:, channels]
        if crf:
            part = part / part.sum(dim=1, keepdim=True)
            part = dense_crf(torch.from_numpy(image)[None], part, 2, bilateral_sxy=32.0, bilateral_compat=0.5)
        mask = read_mask(tmp_path / "masks" / "SegmentationClass" / f"{record.id}.png")
        check_winners(mask, part, channels)
        assert entries[record.id]["labels"] == [VOC_CLASSES[label] for label in record.labels]
        foreground += (mask > 0).sum()
    assert foreground


def test_an_image_without_labels_is_not_limited(run: Path, squares: Path, tmp_path: Path) -> None:
    (squares / "Annotations" / "val_4.xml").unlink()
    run_segment_predict(config(run, squares, use_labels=True))
    (entry,) = [entry for entry in lines(tmp_path / "masks") if entry["id"] == "val_4"]
    assert entry["labels"] is None
    mask = read_mask(tmp_path / "masks" / "SegmentationClass" / "val_4.png")
    check_winners(mask, by_hand(run, squares)["val_4"][1])


def test_long_images_are_reduced_and_their_masks_enlarged(run: Path, squares: Path, tmp_path: Path) -> None:
    run_segment_predict(config(run, squares, max_side=40, crf=True, iterations=1))
    for name, (image, probabilities) in by_hand(run, squares, max_side=40).items():
        assert max(image.shape) == 40
        mask = read_mask(tmp_path / "masks" / "SegmentationClass" / f"{name}.png")
        assert max(mask.shape) in (60, 64)
        refined = dense_crf(torch.from_numpy(image)[None], probabilities, 1, bilateral_sxy=32.0)
        check_winners(mask, torch.from_numpy(enlarge(refined.numpy(), *mask.shape)))


# --- a second call


def test_shards_are_disjoint_and_their_zip_is_the_wholes(run: Path, squares: Path, tmp_path: Path) -> None:
    run_segment_predict(config(run, squares, output=tmp_path / "whole", split="train", voc_zip=tmp_path / "whole.zip"))
    parts = config(run, squares, output=tmp_path / "parts", split="train")
    with pytest.raises(DataError, match="2 of 4 images have no mask"):  # those of the other part are not there yet
        run_segment_predict(replace(parts, shard="1/2", voc_zip=tmp_path / "parts.zip"))
    assert not (tmp_path / "parts.zip").exists()
    assert run_segment_predict(replace(parts, shard="2/2", voc_zip=tmp_path / "parts.zip")).skipped == 0
    with zipfile.ZipFile(tmp_path / "whole.zip") as whole, zipfile.ZipFile(tmp_path / "parts.zip") as together:
        assert whole.namelist() == together.namelist()
        assert all(whole.read(name) == together.read(name) for name in whole.namelist())
    with pytest.raises(DataError, match="--shard"):
        run_segment_predict(replace(parts, shard="3/2"))


def test_a_disk_that_is_too_small_is_said_before_the_work(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"the masks need about .* free some"):
        run_segment_predict(config(run, squares))
    assert not list((squares.parent / "masks").rglob("*.png"))


def test_second_call_does_what_is_missing(run: Path, squares: Path, tmp_path: Path) -> None:
    run_segment_predict(config(run, squares))
    masks = tmp_path / "masks" / "SegmentationClass"
    before = {path.name: path.stat().st_mtime_ns for path in masks.iterdir()}
    gone = (masks / "val_5.png").read_bytes()
    (masks / "val_5.png").unlink()
    summary = run_segment_predict(config(run, squares))
    assert (summary.written, summary.skipped) == (1, 2)
    assert (masks / "val_5.png").read_bytes() == gone
    after = {path.name: path.stat().st_mtime_ns for path in masks.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"val_5.png"}
    assert run_segment_predict(config(run, squares)).written == 0


def test_second_call_follows_changed_labels(run: Path, squares: Path) -> None:
    run_segment_predict(config(run, squares, use_labels=True))
    (squares / "Annotations" / "val_4.xml").write_text("<annotation><object><name>cow</name></object></annotation>")
    summary = run_segment_predict(config(run, squares, use_labels=True))
    assert (summary.written, summary.skipped) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"crf": True}, "crf"), ({"flip": False}, "flip"), ({"scales": (1.0,)}, "scales"), ({"max_side": 50}, "max_side")],
)
def test_other_settings_are_refused(run: Path, squares: Path, changes: dict, named: str) -> None:
    run_segment_predict(config(run, squares))
    with pytest.raises(DataError, match=rf"was predicted with other settings: {named} \("):
        run_segment_predict(config(run, squares, **changes))
    assert run_segment_predict(config(run, squares, overwrite=True, **changes)).written == 3


def test_removed_image_is_recorded_and_made_up_for_later(run: Path, squares: Path, tmp_path: Path) -> None:
    image = squares / "JPEGImages" / "val_5.png"
    content = image.read_bytes()
    source_looked_up = open_source  # the image goes after the split was read

    def open_then_remove(spec: str, classes: tuple[str, ...]):
        source = source_looked_up(spec)
        source.records("val")
        image.unlink()
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_module, "open_source_for", open_then_remove)
        summary = run_segment_predict(config(run, squares))
    assert (summary.written, summary.failed) == (2, 1)
    (entry,) = [entry for entry in lines(tmp_path / "masks") if entry["id"] == "val_5"]
    assert entry["status"] == "error" and "val_5.png" in entry["error"]
    assert not (tmp_path / "masks" / "SegmentationClass" / "val_5.png").exists()
    image.write_bytes(content)
    summary = run_segment_predict(config(run, squares))
    assert (summary.written, summary.skipped, summary.failed) == (1, 2, 0)


def test_full_disk_says_what_to_do_and_leaves_nothing_half(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = mask_folder_module.atomic_write_bytes, []

    def full(path: Path, data: bytes, lasting: bool) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, lasting)

    monkeypatch.setattr(mask_folder_module, "atomic_write_bytes", full)
    with pytest.raises(
        DataError,
        match=r"cannot write the mask of val_\d \(No space left on device\).*rerun the same command to resume",
    ):
        run_segment_predict(config(run, squares, workers=1))
    monkeypatch.setattr(mask_folder_module, "atomic_write_bytes", write)
    left = [path.name for path in (tmp_path / "masks" / "SegmentationClass").iterdir()]
    assert calls[1].name not in left and not [name for name in left if name.startswith(".tmp")]
    run_segment_predict(config(run, squares))
    assert len(list((tmp_path / "masks" / "SegmentationClass").iterdir())) == 3


# --- VOC's zip


def test_zip_holds_the_split_as_vocs_server_wants_it(run: Path, squares: Path, tmp_path: Path) -> None:
    packed = tmp_path / "out" / "results.zip"
    run_segment_predict(config(run, squares, split="train"))  # of another split, in the same folder
    run_segment_predict(config(run, squares, voc_zip=packed))
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == [f"results/VOC2012/Segmentation/comp5_test_cls/val_{n}.png" for n in (4, 5, 6)]
        for name in names:
            with archive.open(name) as file, Image.open(file) as image:
                assert image.mode == "P" and image.format == "PNG"
                expected = read_mask(tmp_path / "masks" / "SegmentationClass" / Path(name).name)
                assert np.array_equal(np.asarray(image), expected)
    first = packed.read_bytes()
    run_segment_predict(config(run, squares, voc_zip=packed))
    assert packed.read_bytes() == first


def test_zip_is_not_written_without_all_masks(run: Path, squares: Path, tmp_path: Path) -> None:
    packed = tmp_path / "results.zip"
    packed.write_bytes(b"earlier")
    (squares / "JPEGImages" / "val_5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"results\.zip is not written: 1 of 3 images have no mask .* the first val_5"):
        run_segment_predict(config(run, squares, voc_zip=packed))
    assert packed.read_bytes() == b"earlier"


def test_zip_needs_vocs_classes(squares: Path, tmp_path: Path) -> None:
    other = make_segment_run(tmp_path / "other", squares, VOC_CLASSES[1:] + VOC_CLASSES[:1])
    with pytest.raises(DataError, match="--voc-zip: the run's classes are bicycle"):
        run_segment_predict(config(other, squares, voc_zip=tmp_path / "results.zip"))
    assert not (tmp_path / "masks").exists()


# --- runs and data that do not fit


def test_runs_of_another_kind_say_what_takes_them(
    run: Path, squares: Path, make_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    cam = make_run(tmp_path / "cam", method="cam").path
    with pytest.raises(DataError, match=r"cam: a run of task 'train' \(`cpn label`.*expected one of 'segment'"):
        run_segment_predict(config(cam, squares))
    taken = r"a run of task 'segment' \(`cpn segment predict`, `cpn segment evaluate` and `cpn export` take it\)"
    with pytest.raises(DataError, match=taken):
        run_label(LabelConfig(run, f"voc:{squares}", tmp_path / "labels"))
    with pytest.raises(DataError, match=taken):
        run_evaluate(EvaluateConfig(run, f"voc:{squares}"))
    with pytest.raises(DataError, match=taken):
        run_report(ReportConfig(run))


def test_run_of_another_version(run: Path, squares: Path, tmp_path: Path) -> None:
    """A setting that this version doesn't know, and weights of another shape."""
    other = tmp_path / "other"
    make_segment_run(other, squares)
    stored = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**stored, "config": {**stored["config"], "atrous": 3}}))
    with pytest.raises(DataError, match=r"config\.json: key config\.atrous: unknown setting"):
        run_segment_predict(config(other, squares))
    (other / "config.json").write_text(json.dumps({**stored, "classes": ["one"]}))
    with pytest.raises(DataError, match=r"model\.safetensors: does not fit the settings"):
        run_segment_predict(config(other, squares))


def test_data_with_a_class_that_the_run_does_not_know(run: Path, small_demo: Path, tmp_path: Path) -> None:
    settings = PredictConfig(run, f"demo:{small_demo}", output=tmp_path / "masks", device="cpu")
    with pytest.raises(DataError, match=r"the data is of other classes, .* than the run: it knows"):
        run_segment_predict(settings)
    assert CLASSES[0] not in VOC_CLASSES and not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"scales": (0.0,)}, "--scales 0.0"),
        ({"crf": True, "bilateral_sxy": 0.0}, "--bilateral-sxy 0.0: expected a number above 0"),
        ({"split": "test"}, "no split 'test'"),
    ],
)
def test_options_out_of_range(run: Path, squares: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_segment_predict(config(run, squares, **changes))
    assert not (tmp_path / "masks").exists()


def test_a_network_that_gives_nan_segments_nothing(run: Path, squares: Path, tmp_path: Path) -> None:
    """Its weights are finite; what it makes of an image is not."""
    diverged = shutil.copytree(run, tmp_path / "diverged")
    weights = load_file(diverged / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"].sign() * 1e38
    save_file(weights, diverged / "model.safetensors")
    with pytest.raises(DataError, match=r"images could be segmented; .*the network's probabilities hold NaN"):
        run_segment_predict(config(diverged, squares, output=tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.png"))
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, diverged / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors: classifier\.weight of \d+ tensors hold NaN"):
        run_segment_predict(config(diverged, squares, output=tmp_path / "other"))


@pytest.mark.parametrize("place", [".", "SegmentationClass", "JPEGImages/masks"])
def test_ground_truth_is_never_replaced(run: Path, squares: Path, place: str) -> None:
    before = {path: path.read_bytes() for path in squares.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="lies in the data"):
        run_segment_predict(config(run, squares, output=squares / place))
    assert {path: path.read_bytes() for path in squares.rglob("*") if path.is_file()} == before
