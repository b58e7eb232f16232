"""`cpn label`: masks against the labelling module run image by image, and everything that can go wrong on the way."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cpn_fast.files.contact_sheet as sheet_module
from cpn_fast.cam.inference import open_labeller, predictions
from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.cam.map_options import MapOptions
from cpn_fast.cam.pixel_masks import open_pixel_masks
from cpn_fast.cli.main import main as cpn
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.convert.folder import select_masks
from cpn_fast.data.sources.demo_scenes import CLASSES
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import default_split
from cpn_fast.files import disk_space
from cpn_fast.files.contact_sheet import CELL, SheetItem, overlay, write_contact_sheet
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.mask_folder import MaskFolder, foreground_share, without_object
from cpn_fast.files.masks import read_labelmap
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.files.palette import voc_palette
from cpn_fast.files.soft_maps import SoftMaps, read_soft_maps, write_soft_maps
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.reader import Failure, InferenceOptions
from cpn_fast.metrics.confidence import map_confidence, probability_confidence
from cpn_fast.models import build
from cpn_fast.models.labeller import Labeller
from cpn_fast.refine.labelled_folder import LabelledFolder
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_fast.segment.masks import open_masks
from tests.mini_backbone import Mini

SCALES = (0.5, 1.0)
PER_SCALE = {"refine": "learnt", "refine_at": "scale"}
LEARNT = MapOptions(SCALES, **PER_SCALE)
SHAPES = [(40, 56), (56, 40), (40, 56), (33, 90), (40, 56)]


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def write_images(folder, shapes=SHAPES, seed=0):
    """Smooth random colours, in sub-folders by twos."""
    rng = np.random.default_rng(seed)
    for index, (height, width) in enumerate(shapes):
        path = folder / f"set {index // 2}" / f"photo{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        blocks.resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def data(tmp_path):
    """A folder source with labels: `folder:PATH`, split `all`."""
    root = tmp_path / "data"
    write_images(root / "images")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    labels = [CLASSES[:1], CLASSES[1:3], CLASSES[2:4], CLASSES[:3], CLASSES[4:5]]
    rows = [f"images/set {i // 2}/photo{i}.png,{';'.join(names)}" for i, names in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["image,labels", *rows]) + "\n")
    return root


def config(run, data, output, **more):
    values = {"split": "all", "scales": SCALES, "beta": 0.3, "device": "cpu", "sheet": 0, **PER_SCALE} | more
    return LabelConfig(run.path, f"folder:{data}", output, **values)


def masks(output):
    folder = output / "SegmentationClass"
    return {p.relative_to(folder).with_suffix("").as_posix(): np.asarray(Image.open(p)) for p in folder.rglob("*.png")}


def direct(run, data, beta=0.3, labelled=True):
    """The labelling module itself, dense and image by image."""
    labeller = Labeller(run.load_model(), SCALES, True, beta)
    source = open_source(f"folder:{data}")
    results = {}
    for record in source.records("all"):
        sample = source.read(record)
        row = sample.labels if labelled and sample.labels is not None else np.full(len(CLASSES), -1)
        with torch.no_grad():
            results[record.id] = labeller(torch.from_numpy(sample.image)[None], torch.tensor(row)[None].float())
    return results


def agreement(found, expected):
    return np.mean([np.mean(found[name] == expected[name]) for name in expected])


def test_voc_layout_and_masks_equal_the_labelling_module(run, data, tmp_path):
    out = tmp_path / "out"
    summary = run_label(config(run, data, out, soft_maps=True, sheet=3))
    assert (summary.written, summary.skipped, summary.failed, summary.from_scores) == (5, 0, 0, 0)
    expected = direct(run, data)
    found = masks(out)
    assert found.keys() == expected.keys() and "set 1/photo2" in found
    assert any((mask > 0).any() for mask in found.values()) and any((mask == 0).any() for mask in found.values())
    # Only the maps of present classes are computed here, so sums round differently and a pixel at beta may flip.
    assert agreement(found, {name: result.mask[0].numpy() for name, result in expected.items()}) > 0.9995
    with Image.open(out / "SegmentationClass/set 0/photo1.png") as image:
        assert (image.mode, image.size) == ("P", (40, 56))
        assert np.array_equal(
            np.array(image.getpalette()).reshape(-1, 3), voc_palette()[: len(image.getpalette()) // 3]
        )
    assert read_labelmap(out / "labelmap.txt") == tuple(CLASSES)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == found.keys()
    assert all(line["status"] == "ok" and line["labels_from"] == "image" for line in lines)
    assert {line["id"]: line["labels"] for line in lines}["set 0/photo1"] == sorted(CLASSES[1:3], key=CLASSES.index)
    for name, result in expected.items():
        soft = read_soft_maps(out / "SoftMaps" / f"{name}.npz")
        dense = np.zeros(result.rcam.shape[1:], np.float32)
        dense[soft.classes.astype(int) - 1] = soft.at_image_size()
        assert np.abs(dense - result.rcam[0].numpy()).max() < 0.5 / 255 + 1e-4
    assert Image.open(out / "contact_sheet.png").size[0] > 3 * 2 * CELL


def test_cam_instead_of_rcam(run, data, tmp_path):
    run_label(config(run, data, tmp_path / "out", maps="cam"))
    expected = {}
    for name, result in direct(run, data).items():
        best, index = result.cam[0].max(dim=0)
        expected[name] = torch.where(best > 0.3, index + 1, 0).numpy()
    assert agreement(masks(tmp_path / "out"), expected) > 0.9995


def test_second_call_does_only_what_is_missing(run, data, tmp_path):
    out = tmp_path / "out"
    run_label(config(run, data, out))
    first = masks(out)
    kept, gone = out / "SegmentationClass/set 0/photo0.png", out / "SegmentationClass/set 0/photo1.png"
    os.utime(kept, (1, 1))
    gone.unlink()
    summary = run_label(config(run, data, out))
    assert (summary.written, summary.skipped) == (1, 4)
    assert kept.stat().st_mtime == 1
    assert all(np.array_equal(first[name], mask) for name, mask in masks(out).items())
    assert run_label(config(run, data, out)).written == 0
    assert run_label(config(run, data, out, soft_maps=True)).written == 5  # none had its soft maps


def test_changed_image_labels_are_done_again(run, data, tmp_path):
    out = tmp_path / "out"
    run_label(config(run, data, out))
    table = data / "labels.csv"
    table.write_text(table.read_text().replace(f"photo0.png,{CLASSES[0]}", f"photo0.png,{CLASSES[5]}"))
    assert run_label(config(run, data, out)).written == 1
    assert set(np.unique(masks(out)["set 0/photo0"])) <= {0, 6}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beta": 0.4}, "beta"),
        ({"scales": (1.0,)}, "scales"),
        ({"flip": False}, "flip"),
        ({"maps": "cam"}, "maps"),
        ({"void_band": (0.2, 0.3)}, "void_band"),
        ({"max_side": 20}, "max_side"),
        ({"use_labels": False}, "use_labels"),
    ],
)
def test_other_settings_are_refused_unless_overwritten(run, data, tmp_path, change, named):
    out = tmp_path / "out"
    run_label(config(run, data, out, shard="1/5"))
    with pytest.raises(DataError, match=rf"other settings: {named} \(there"):
        run_label(config(run, data, out, shard="1/5", **change))
    assert run_label(config(run, data, out, shard="1/5", overwrite=True, **change)).written == 1


def test_other_weights_are_refused(make_run, data, tmp_path):
    run = make_run(tmp_path / "run")
    run_label(config(run, data, tmp_path / "out", shard="1/5"))
    net = run.load_model()
    with torch.no_grad():
        net.classifier.weight.mul_(2)
    run.save_model(net, 1)
    with pytest.raises(DataError, match="weights_sha256"):
        run_label(config(run, data, tmp_path / "out", shard="1/5"))


def test_a_broken_image_is_recorded_and_tried_again(run, data, tmp_path):
    out, path = tmp_path / "out", data / "images/set 0/photo1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    summary = run_label(config(run, data, out))
    assert (summary.written, summary.failed) == (4, 1)
    entry = next(json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines() if '"error"' in line)
    assert entry["id"] == "set 0/photo1" and str(path) in entry["error"]
    assert "set 0/photo1" not in masks(out)
    path.write_bytes(whole)
    assert run_label(config(run, data, out)).written == 1


def test_exit_status_says_that_images_failed(run, data, tmp_path):
    (data / "images/set 0/photo1.png").write_bytes(b"no image")
    words = ["label", str(run.path), str(data), "--output", str(tmp_path / "out"), "--scales", "0.5", "--device", "cpu"]
    assert cpn(words) == 3
    assert len(masks(tmp_path / "out")) == 4
    assert cpn([*words, "--allow-failures"]) == 0
    (data / "images/set 0/photo1.png").write_bytes((data / "images/set 0/photo0.png").read_bytes())
    assert cpn(words) == 0 and len(masks(tmp_path / "out")) == 5


def test_no_image_can_be_read(run, data, tmp_path):
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 5 images could be labelled.*0 bytes"):
        run_label(config(run, data, tmp_path / "out"))


def test_a_network_that_gives_nan_labels_nothing(make_run, data, tmp_path):
    """Its weights are finite; what it makes of an image is not."""
    diverged = make_run(tmp_path / "diverged")
    weights = load_file(diverged.model_path)
    weights["classifier.weight"] = weights["classifier.weight"].sign() * 1e38
    save_file(weights, diverged.model_path)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"none of the 5 images could be labelled; .*class maps or scores hold NaN"):
        run_label(config(diverged, data, out, soft_maps=True))
    entries = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert {entry["status"] for entry in entries} == {"error"} and not list(out.rglob("*.png"))
    with pytest.raises(DataError, match=r"class maps or scores hold NaN .*; a score needs every image"):
        run_evaluate(EvaluateConfig(diverged.path, f"folder:{data}", split="all", scales=SCALES, device="cpu"))


def test_bare_folder_without_labels_or_masks(run, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    write_images(photos)
    values = {"scales": SCALES, "beta": 0.3, "device": "cpu", "sheet": 2, **PER_SCALE}
    summary = run_label(LabelConfig(run.path, output=out, images=(photos,), **values), TerminalProgress())
    assert (summary.written, summary.from_scores) == (5, 5)
    assert "5 without image labels" in capsys.readouterr().out
    expected = direct(run, photos, labelled=False)
    assert agreement(masks(out), {name: result.mask[0].numpy() for name, result in expected.items()}) > 0.9995
    for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines()):
        scores = expected[line["id"]].scores[0]
        above = [name for name, score in zip(CLASSES, scores, strict=True) if score > 0.5]
        assert line["labels_from"] == "scores"
        assert line["labels"] == (above or [CLASSES[int(scores.argmax())]])


def test_one_photo_and_the_folder_that_the_message_names(run, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    photo = tmp_path / "photos/set 1/photo3.png"
    assert cpn(["label", str(run.path), str(photo), "--scales", "1", "--device", "cpu"]) == 0
    assert list(masks(tmp_path / "photo3-masks")) == ["photo3"]
    shown = capsys.readouterr().out
    assert "1 masks written to photo3-masks/SegmentationClass" in shown and "photo3-masks/contact_sheet.png" in shown
    assert cpn(["label", str(run.path), str(photo), "--data", "demo:"]) == 2
    assert "one of the two" in capsys.readouterr().err
    assert cpn(["label", str(run.path)]) == 2


def test_a_data_set_named_as_a_folder_is_read_with_its_labels(run, data, tmp_path):
    values = {"scales": (1.0,), "beta": 0.3, "device": "cpu", "sheet": 0}
    summary = run_label(LabelConfig(run.path, output=tmp_path / "out", images=(data,), **values))
    assert (summary.written, summary.from_scores) == (5, 0)  # all of them: without masks no `val` is held back
    assert {line["labels_from"] for line in summary.done} == {"image"}


def test_folders_named_like_classes_have_labels_and_others_are_mere_folders(run, tmp_path):
    for name in CLASSES[:2]:
        write_images(tmp_path / "sorted" / name, SHAPES[:1])
    values = {"scales": (1.0,), "beta": 0.3, "device": "cpu", "sheet": 0}
    summary = run_label(LabelConfig(run.path, output=tmp_path / "a", images=(tmp_path / "sorted",), **values))
    assert sorted(entry["labels"][0] for entry in summary.done) == sorted(CLASSES[:2]) and summary.from_scores == 0
    for name, place in zip(CLASSES[:2], ("holidays", "garden"), strict=True):
        (tmp_path / "sorted" / name).rename(tmp_path / "sorted" / place)
    summary = run_label(LabelConfig(run.path, output=tmp_path / "b", images=(tmp_path / "sorted",), **values))
    assert (summary.written, summary.from_scores) == (2, 2)


def test_a_source_with_masks_keeps_its_splits(small_demo, tmp_path, data):
    assert default_split(open_source(f"demo:{small_demo}")) == "train"
    assert default_split(open_source(f"folder:{data}")) == "all"
    (data / "masks").mkdir()
    for image in sorted((data / "images").rglob("*.png")):
        path = data / "masks" / image.relative_to(data / "images")
        path.parent.mkdir(exist_ok=True)
        Image.new("P", Image.open(image).size).save(path)
    assert default_split(open_source(f"folder:{data}")) == "train"


def test_void_band(run, data, tmp_path):
    run_label(config(run, data, tmp_path / "plain"))
    run_label(config(run, data, tmp_path / "banded", void_band=(0.25, 0.5)))
    plain, banded = masks(tmp_path / "plain"), masks(tmp_path / "banded")
    for name, result in direct(run, data).items():
        score = result.rcam[0].amax(dim=0).numpy()
        clear = np.abs(np.stack([score - 0.25, score - 0.5])).min(0) > 1e-4
        inside = (score >= 0.25) & (score <= 0.5)
        assert inside.any()
        assert np.array_equal(banded[name][clear], np.where(inside, 255, plain[name])[clear])


def test_large_images_are_reduced_and_the_mask_enlarged_back(run, data, tmp_path):
    run_label(config(run, data, tmp_path / "out", max_side=45))
    labeller = Labeller(run.load_model(), SCALES, True, 0.3)
    with Image.open(data / "images/set 1/photo3.png") as image:
        small = np.array(image.resize((45, 17), Image.Resampling.BILINEAR))  # 90 x 33, 16.5 rounds up
    labels = torch.zeros(1, len(CLASSES))
    labels[0, :3] = 1
    with torch.no_grad():
        mask = labeller(torch.from_numpy(small)[None], labels).mask[0].numpy()
    expected = np.asarray(Image.fromarray(mask).resize((90, 33), Image.Resampling.NEAREST))
    found = masks(tmp_path / "out")["set 1/photo3"]
    assert found.shape == (33, 90)
    assert np.mean(found == expected) > 0.9995


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (100, 33), (64, 64)])
def test_enlarge_is_pillows_nearest(shape):
    plane = np.random.default_rng(0).integers(0, 256, (17, 23)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(plane).resize(shape[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(enlarge(plane, *shape), expected)
    assert np.array_equal(enlarge(np.stack([plane, plane + 1]), *shape)[0], expected)


def test_reduce_image_keeps_small_ones_and_thin_strips():
    image = np.zeros((3, 4000, 3), np.uint8)
    assert reduce_image(image, 4000) is image
    assert reduce_image(image, 1000).shape == (1, 1000, 3)


def test_shards_are_disjoint_and_together_the_whole(run, data, tmp_path):
    run_label(config(run, data, tmp_path / "whole"))
    parts = [run_label(config(run, data, tmp_path / "parts", shard=f"{i}/2")).written for i in (1, 2)]
    assert parts == [3, 2]
    whole, together = masks(tmp_path / "whole"), masks(tmp_path / "parts")
    assert whole.keys() == together.keys()
    assert all(np.array_equal(whole[name], together[name]) for name in whole)


def test_batches_give_the_masks_of_single_images(run, data, tmp_path):
    run_label(config(run, data, tmp_path / "one"))
    run_label(config(run, data, tmp_path / "many", batch_size=3))
    assert agreement(masks(tmp_path / "many"), masks(tmp_path / "one")) > 0.9995


def check_compiled(run, data, output):
    """`cpn label --compile`: eager's masks, from fewer graphs than there are sizes."""
    run_label(config(run, data, output / "eager", scales=(1.0,), flip=False))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run_label(config(run, data, output / "compiled", scales=(1.0,), flip=False, compile=True))
    sizes = {mask.shape for mask in masks(output / "eager").values()}
    assert len(sizes) > 1
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= graphs < len(sizes), f"{graphs} graphs for {len(sizes)} sizes"
    assert agreement(masks(output / "compiled"), masks(output / "eager")) > 0.9995


@pytest.mark.slow
def test_a_real_network_is_captured_in_few_graphs(run, data, tmp_path, monkeypatch):
    """Without code for them, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    check_compiled(run, data, tmp_path)


@pytest.mark.slow
def test_compiled_network_gives_the_same_masks(make_run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "create_backbone", lambda name, frozen, **_: Mini())
    check_compiled(make_run(tmp_path / "run"), data, tmp_path)


def test_image_without_any_class_is_background(run, data, tmp_path):
    source, labeller = open_source(f"folder:{data}"), open_labeller(run, LEARNT, "cpu", 0.3)
    empty = [type(r)(r.id, r.image_path, (), None) for r in source.records("all")]
    mapping = ClassMapping.between(source.classes, run.classes)
    for prediction in predictions(labeller, source, empty, mapping, InferenceOptions(batch_size=2)):
        assert not isinstance(prediction, Failure)
        assert len(prediction.classes) == 0 and prediction.maps["rcam", "multi"].shape[0] == 0
        assert prediction.best("rcam")[1].max() == 0
        assert prediction.at_image_size("rcam").shape[1:] == prediction.image.shape[:2]


def test_classes_in_another_order_are_matched_by_name(run, data, tmp_path):
    run_label(config(run, data, tmp_path / "out"))
    (data / "classes.txt").write_text("\n".join(reversed(CLASSES)) + "\n")
    run_label(config(run, data, tmp_path / "other"))
    first, second = masks(tmp_path / "out"), masks(tmp_path / "other")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_unknown_class_of_the_data(run, data, tmp_path):
    (data / "classes.txt").write_text("\n".join([*CLASSES, "unicorn"]) + "\n")
    with pytest.raises(DataError, match=r"not trained on: unicorn; the run knows"):
        run_label(config(run, data, tmp_path / "out"))


def test_mask_values_are_mapped_with_the_classes():
    mapping = ClassMapping.between(("b", "a"), ("a", "x", "b"))
    assert mapping.vector((0,)).tolist() == [False, False, True]
    assert mapping.mask(np.array([[0, 1, 2, 255]], np.uint8)).tolist() == [[0, 3, 1, 255]]
    same = ClassMapping.between(("a", "b"), ("a", "b", "c"))
    assert same.mask(np.array([[0, 1, 2, 255]], np.uint8)).tolist() == [[0, 1, 2, 255]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 1.5}, "--beta 1.5"),
        ({"threshold": -1.0}, "--threshold -1"),
        ({"void_band": (0.5, 0.2)}, "--void-band 0.5 0.2"),
        ({"scales": (0.0,)}, "--scales 0.0"),
        ({"scales": ()}, "--scales"),
        ({"scales": (1.0, 1.0)}, "different"),
        ({"max_side": 0}, "--max-side 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"shard": "3/2"}, "--shard"),
        ({"split": "nonsense"}, "nonsense"),
    ],
)
def test_options_out_of_range(run, data, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        run_label(config(run, data, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_rcam_of_a_run_without_refinement(make_run, data, tmp_path):
    run = make_run(tmp_path / "cam", method="cam")
    with pytest.raises(DataError, match="no RCAM"):
        run_label(config(run, data, tmp_path / "out", maps="rcam", refine="none"))
    with pytest.raises(DataError, match="no refinement heads; use --refine raw"):
        run_label(config(run, data, tmp_path / "out", refine="learnt"))
    assert run_label(config(run, data, tmp_path / "out", shard="1/5", maps="rcam", refine="raw")).written == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(run, data, tmp_path):
    with pytest.raises(DataError, match="no GPU"):
        run_label(config(run, data, tmp_path / "out", device="cuda"))


def test_full_disk_is_said_before_the_work(run, data, tmp_path, monkeypatch):
    usage = disk_space.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="free some"):
        run_label(config(run, data, tmp_path / "out"))


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", ""])
def test_ids_that_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(DataError, match="leads out"):
        MaskFolder.at(tmp_path).mask_path(name)


def test_confidence_by_hand():
    maps = np.array([[[0.9, 0.1]], [[0.4, 0.0]]], np.float32)
    # pixel 1: (0.9 - 0.4) / (1 - 0.2); pixel 2 is background: (0.2 - 0.1) / 0.2
    assert map_confidence(maps, 0.2) == pytest.approx((0.625 + 0.5) / 2)
    assert map_confidence(maps[:1], 0.2) == pytest.approx((0.875 + 0.5) / 2)
    assert map_confidence(np.full((1, 2, 2), 0.1, np.float32), 0.2) == 0  # a class is there, no pixel shows it
    assert map_confidence(np.zeros((0, 2, 2), np.float32), 0.2) == 1


def test_confidence_of_probabilities_by_hand():
    probabilities = np.array([[[0.5, 0.1]], [[0.3, 0.2]], [[0.2, 0.7]]], np.float32)
    assert probability_confidence(probabilities) == pytest.approx((0.2 + 0.5) / 2)
    assert probability_confidence(probabilities[:1]) == 1


def test_sheet_shows_the_least_confident_first(run, data, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sheet_module, "write_contact_sheet", lambda path, items, **more: shown.extend(items))
    run_label(config(run, data, tmp_path / "out", sheet=3))
    lines = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    expected = [line["id"] for line in sorted(lines, key=lambda line: line["confidence"])][:3]
    assert [item.title.splitlines()[0] for item in shown] == expected
    assert np.array_equal(shown[0].mask, masks(tmp_path / "out")[expected[0]])


def test_contact_sheet_names_the_classes_with_their_colours(tmp_path):
    image, mask = np.full((60, 100, 3), 200, np.uint8), np.zeros((60, 100), np.uint8)
    mask[:, 50:] = 2
    items = [SheetItem(image, mask, "a\n0.10  dog")]
    write_contact_sheet(tmp_path / "plain.png", items)
    write_contact_sheet(tmp_path / "named.png", items, classes=("cat", "dog"), note="the number is the confidence")
    plain, named = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("plain", "named"))
    legend = named[: len(named) - len(plain)]
    assert np.array_equal(named[len(legend) :], plain)  # the sheet itself is as it was
    dog, cat = voc_palette()[2], voc_palette()[1]
    assert (legend == dog).all(axis=2).sum() >= 13 * 13 and not (legend == cat).all(axis=2).any()
    assert (legend[:20].max(axis=2) > 150).sum() > 100  # the note's letters


def test_contact_sheet_pixels(tmp_path):
    image = np.full((60, 100, 3), 200, np.uint8)
    mask = np.zeros((60, 100), np.uint8)
    mask[:, 50:] = 1
    write_contact_sheet(tmp_path / "sheet.png", [SheetItem(image, mask, "ünïcode\n0.10  cat")] * 5, columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 3 * CELL * 60 / 100
    for colour in (200, 200, 200), (110, 110, 110), (156, 80, 80):  # image, dimmed background, 40% grey + 60% dark red
        assert (np.abs(sheet.astype(int) - colour).max(axis=2) <= 1).sum() > 5000
    assert overlay(image, np.full((60, 100), 255, np.uint8), voc_palette())[0, 0].tolist() == [233, 233, 233]


def test_soft_maps_round_trip_and_damage(tmp_path):
    rng = np.random.default_rng(0)
    maps = rng.random((2, 9, 12), dtype=np.float32)
    path = tmp_path / "a" / "b.npz"
    write_soft_maps(path, SoftMaps(np.array([3, 254], np.uint8), maps, (18, 24)))
    read = read_soft_maps(path)
    assert read.classes.tolist() == [3, 254] and read.size == (18, 24)
    assert np.abs(read.maps - maps).max() <= 0.5 / 255 + 1e-6
    assert read.at_image_size().shape == (2, 18, 24)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"b\.npz"):
        read_soft_maps(path)
    np.savez(path, classes=np.zeros(1, np.uint8), maps=np.zeros((2, 3, 3), np.uint8), size=np.array([3, 3]))
    with pytest.raises(DataError, match="of 1 classes"):
        read_soft_maps(path)
    np.savez(path, classes=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"b\.npz"):
        read_soft_maps(path)


def tree(*folders):
    """Every file below, with its bytes."""
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("place", [".", "images", "masks", "images/set 0", "out"])
def test_an_output_in_the_data_is_refused_before_anything_is_written(run, data, place):
    before = tree(data)
    with pytest.raises(DataError, match=r"output .*: lies in the data, .*give an --output outside"):
        run_label(config(run, data, data / place))
    assert tree(data) == before


def test_ground_truth_in_voc_layout_is_never_replaced(run, small_demo, tmp_path):
    root = shutil.copytree(small_demo, tmp_path / "demo")
    before = tree(root)
    for place in (root, root / "SegmentationClass", root / "JPEGImages/masks"):
        with pytest.raises(DataError, match="lies in the data"):
            run_label(LabelConfig(run.path, f"demo:{root}", place, split="val", device="cpu", sheet=0))
    assert tree(root) == before


def test_the_usual_output_beside_bare_photographs_is_fine(run, data, monkeypatch):
    folder = data / "images/set 0"
    monkeypatch.chdir(folder)
    options = {"images": (Path("photo0.png"),), "beta": 0.3, "device": "cpu", "sheet": 0, "scales": SCALES}
    assert run_label(LabelConfig(run.path, **options)).output == Path("photo0-masks")
    with pytest.raises(DataError, match="lies in the data"):
        run_label(LabelConfig(run.path, **{**options, "images": (Path(),)}))


def test_a_half_done_labelling_is_said_by_all_who_read_it(run, data, tmp_path, caplog):
    out = tmp_path / "out"
    run_label(config(run, data, out, soft_maps=True, shard="1/5"))  # as after an interruption: 1 of 5 images
    caplog.clear()
    source = open_source(f"folder:{data}")
    readers = {
        "refine, train-affinity": lambda: LabelledFolder.open(out),
        "segment train": lambda: open_masks(str(out), source),
        "pixel masks": lambda: open_pixel_masks(out, CLASSES, source.records("all")),
        "convert": lambda: select_masks(out),
    }
    for name, read in readers.items():
        read()
        (said,) = [message for message in caplog.messages if "to finish it" in message]
        assert said.startswith(f"{out}: 1 of 5 images have a mask, set "), name
        assert f"`cpn label {run.path} --data folder:{data} --output {out}" in said and "--shard" not in said
        caplog.clear()
    run_label(config(run, data, out, soft_maps=True))
    for read in readers.values():
        read()
    assert not any("to finish it" in message for message in caplog.messages)


def test_images_that_failed_count_as_lacking(run, data, tmp_path):
    out = tmp_path / "out"
    (data / "images/set 0/photo1.png").write_bytes(b"no image")
    run_label(config(run, data, out))
    assert MaskFolder.at(out).lacking()[:2] == (5, ["set 0/photo1"])
    (out / "plan.json").unlink()  # as of an earlier version: the manifest alone
    assert MaskFolder.at(out).lacking() == (5, ["set 0/photo1"], "")
    (out / "plan.json").write_text('["set 0/photo1"]')
    with pytest.raises(DataError, match=r"plan.json: expected an object with `command`.*; delete it"):
        MaskFolder.at(out).lacking()


def test_masks_without_an_object_are_counted_at_the_end(run, data, tmp_path, capsys):
    out = tmp_path / "out"
    run_label(config(run, data, out, beta=1.0), TerminalProgress())  # which no normalised map exceeds
    assert not any(mask.any() for mask in masks(out).values())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("5 of 5 masks hold no object, that of set ") and last.endswith("--beta below 1")
    run_label(config(run, data, tmp_path / "low", beta=0.0), TerminalProgress())
    assert "hold no object" not in capsys.readouterr().out


def test_what_counts_as_a_mask_without_an_object():
    mask = np.zeros((1000, 1000), np.uint8)
    assert foreground_share(mask) == 0
    mask[5, 5] = 3
    assert foreground_share(mask) == 1e-6  # rounded to four places it would be none
    entries = [
        {"id": "a", "foreground": 0.0, "labels": [], "labels_from": "image"},  # known to hold no class
        {"id": "b", "foreground": 0.0, "labels": ["cat"], "labels_from": "image"},
        {"id": "c", "foreground": 1e-6, "labels": ["cat"], "labels_from": "image"},
        {"id": "d", "foreground": 0.0, "labels": [], "labels_from": "mask"},
    ]
    assert without_object(entries, "do that") == "2 of 3 masks hold no object, that of b for instance: do that"
    assert without_object(entries[2:3], "do that") == ""


@pytest.mark.parametrize("sink", ["wds", "parquet"])
def test_masks_in_shards_are_those_of_files_and_are_read_as_they_are(run, data, tmp_path, sink):
    plain = run_label(config(run, data, tmp_path / "files"))
    summary = run_label(config(run, data, tmp_path / "shards", sink=sink, shard_size=2, sheet=3))
    assert (summary.written, summary.failed) == (plain.written, 0) == (5, 0)
    assert summary.sheet is not None and summary.sheet.is_file()
    assert not (tmp_path / "shards" / "SegmentationClass").exists()
    expected, folder = masks(tmp_path / "files"), find_masks(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("masks-*"))) == 3 and set(folder.paths()) == set(expected)
    entries, others = folder.manifest().entries(), MaskFolder.at(tmp_path / "files").manifest().entries()
    for name, mask in expected.items():
        np.testing.assert_array_equal(folder.read(name), mask)
        keys = ("labels", "confidence", "foreground", "width", "height", "image")
        assert {key: entries[name][key] for key in keys} == {key: others[name][key] for key in keys}
    again = run_label(config(run, data, tmp_path / "shards", sink=sink, shard_size=2))
    assert (again.written, again.skipped) == (0, 5)
    with pytest.raises(DataError, match=r"shard_size \(there: 2, now: 3\)"):
        run_label(config(run, data, tmp_path / "shards", sink=sink, shard_size=3))
    # `convert`, `segment train` and `evaluate`
    for name, item in {item.id: item for item in select_masks(tmp_path / "shards").items}.items():
        np.testing.assert_array_equal(item.read(), expected[name])
    source = open_source(f"folder:{data}")
    training = open_masks(str(tmp_path / "shards"), source)
    for record in source.records("all"):
        assert training.check(record) is None
        np.testing.assert_array_equal(training.read(record).mask, expected[record.id])
    for record in source.records("all"):
        target = data / "masks" / f"{record.id}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(expected[record.id]).save(target)
    scored = run_evaluate(EvaluateConfig(tmp_path / "shards", f"folder:{data}", split="all"))
    assert scored["miou"] == 1.0 and scored["images"] == 5


def test_soft_maps_are_not_kept_in_shards(run, data, tmp_path):
    with pytest.raises(DataError, match="--soft-maps --sink wds"):
        run_label(config(run, data, tmp_path / "m", sink="wds", soft_maps=True))
