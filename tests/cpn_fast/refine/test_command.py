"""`cpn refine`: masks against the CRF called directly, and everything that can go wrong on the way."""

import errno
import json
import os
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

import cpn_fast.files.mask_folder as mask_folder_module
from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.data.sources.open import open_source
from cpn_fast.files import disk_space
from cpn_fast.files.atomic import atomic_write_bytes
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_labelmap, read_mask, write_mask
from cpn_fast.files.soft_maps import read_soft_maps
from cpn_fast.models.affinity_labels import alpha_of_beta
from cpn_fast.refine.command import RefineConfig, run_refine
from cpn_fast.refine.crf import Background, CrfStep, as_probabilities, background_scores
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_kernels.ops.dense_crf import AFFINITY_LABELS, SEGMENTATION, dense_crf, probabilities_from_labels

BETA = 0.3
CRF = asdict(SEGMENTATION) | {"iterations": 2}


@pytest.fixture(scope="module")
def labelled(make_run, small_demo, tmp_path_factory):
    """Six labelled images with soft maps; do not change it."""
    folder = tmp_path_factory.mktemp("labelled")
    run, images = make_run(folder / "run"), folder / "demo"
    shutil.copytree(small_demo, images)
    values = {"split": "val", "scales": (0.5, 1.0), "beta": BETA, "device": "cpu", "sheet": 0, "soft_maps": True}
    run_label(LabelConfig(run.path, f"demo:{images}", folder / "masks", **values))
    return folder / "masks"


@pytest.fixture
def masks(labelled, tmp_path):
    """A copy to change."""
    return shutil.copytree(labelled, tmp_path / "masks")


def config(masks, **more):
    values = {"crf": True, "iterations": 2, "workers": 2} | more
    return RefineConfig(masks, values.pop("output", masks.parent / "refined"), **values)


@pytest.fixture
def to(tmp_path):
    """Options for the labelled folder that is shared: an output folder of the test's own."""
    return {"output": tmp_path / "refined"}


def lines(folder):
    return {e["id"]: e for e in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())}


def found(folder):
    return {path.stem: read_mask(path) for path in (folder / "SegmentationClass").glob("*.png")}


def move_image(masks, entry):
    """Make the manifest name an image that is not there; returns its path."""
    path = masks / "manifest.jsonl"
    gone = entry["image"] + ".moved"
    path.write_text(path.read_text().replace(json.dumps(entry["image"]), json.dumps(gone)))
    return gone


def test_masks_equal_the_crf_called_directly(labelled, to, capsys):
    out = to["output"]
    summary = run_refine(config(labelled, **to), TerminalProgress())
    before, after, made = lines(labelled), found(out), lines(out)
    assert (summary.written, summary.skipped, summary.failed) == (6, 0, 0)
    assert after.keys() == before.keys() == made.keys()
    assert read_labelmap(out / "labelmap.txt") == read_labelmap(labelled / "labelmap.txt")
    for name, entry in before.items():
        image = np.asarray(Image.open(entry["image"]).convert("RGB")).copy()
        soft = read_soft_maps(labelled / "SoftMaps" / f"{name}.npz")
        scores = np.concatenate([np.full_like(soft.maps[:1], BETA), soft.at_image_size()])
        probabilities = torch.from_numpy(scores / scores.sum(0))[None]
        refined = dense_crf(torch.from_numpy(image)[None], probabilities, **CRF)[0].argmax(0).numpy()
        expected = np.concatenate([[0], soft.classes])[refined]
        assert np.mean(after[name] == expected) > 0.9999
        initial = np.concatenate([[0], soft.classes])[scores.argmax(0)]
        assert made[name]["changed"] == pytest.approx(np.mean(after[name] != initial), abs=1e-4)
        assert made[name]["labels"] == entry["labels"] and made[name]["settings"]["iterations"] == 2
    assert 0 < summary.changed < 1
    settings = json.loads((out / "settings.json").read_text())
    stored = json.loads((labelled / "settings.json").read_text())
    assert settings["label.weights_sha256"] == stored["weights_sha256"]
    assert (settings["background"], settings["value"], settings["bilateral_sxy"]) == ("constant", BETA, 32.0)
    assert "6 masks written" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["constant", "power"])
def test_without_iterations_the_masks_are_the_labelling_s(labelled, to, rule):
    run_refine(config(labelled, iterations=0, background=rule, **to))
    before, after = found(labelled), found(to["output"])
    # Soft maps are stored to 1/255, so that a pixel at beta may flip.
    assert min(np.mean(after[name] == mask) for name, mask in before.items()) > 0.99


def map_probabilities(maps, background):
    return as_probabilities(background_scores(maps, background))


def test_probabilities_by_hand():
    maps = np.array([[[0.9, 0.0]], [[0.3, 0.0]]], np.float32)
    constant = map_probabilities(maps, Background("constant", 0.3))[0, :, 0].T
    assert constant.numpy() == pytest.approx(np.array([[0.2, 0.6, 0.2], [1, 0, 0]]))
    power = map_probabilities(maps, Background("power", 2.0))[0, :, 0].T
    assert power[0].numpy() == pytest.approx(np.array([0.01, 0.9, 0.3]) / 1.21, rel=1e-5)
    nothing = map_probabilities(np.zeros((1, 1, 1), np.float32), Background("constant", 0.0))
    assert nothing.isfinite().all()


def test_workers_change_nothing_and_torch_keeps_its_threads(labelled, tmp_path):
    threads = torch.get_num_threads()
    for workers in (1, 3):
        run_refine(config(labelled, output=tmp_path / str(workers), workers=workers))
    first, second = found(tmp_path / "1"), found(tmp_path / "3")
    assert all(np.array_equal(mask, second[name]) for name, mask in first.items())
    assert torch.get_num_threads() == threads


def test_presets_and_overrides(labelled, tmp_path):
    assert SEGMENTATION != AFFINITY_LABELS
    for more, preset in (({}, SEGMENTATION), ({"preset": "affinity"}, AFFINITY_LABELS)):
        out = tmp_path / more.get("preset", "default")
        run_refine(config(labelled, output=out, iterations=None, bilateral_srgb=5.0, **more))
        stored = next(iter(lines(out).values()))["settings"]
        assert {key: stored[key] for key in asdict(preset)} == asdict(preset) | {"bilateral_srgb": 5.0}


def test_power_is_derived_from_beta_or_given(labelled, tmp_path):
    run_refine(config(labelled, output=tmp_path / "derived", background="power", iterations=0))
    run_refine(config(labelled, output=tmp_path / "given", background="power", alpha=16.0, iterations=0))
    values = [next(iter(lines(tmp_path / name).values()))["settings"]["value"] for name in ("derived", "given")]
    assert values == [pytest.approx(alpha_of_beta(BETA)), 16.0]


def test_second_call_does_only_what_is_missing_or_has_changed(masks):
    out = config(masks).output
    run_refine(config(masks))
    names = sorted(found(out))
    os.utime(out / "SegmentationClass" / f"{names[0]}.png", (1, 1))
    (out / "SegmentationClass" / f"{names[1]}.png").unlink()
    save(masks / "SoftMaps" / f"{names[2]}.npz")  # as if labelled anew
    summary = run_refine(config(masks))
    assert (summary.written, summary.skipped) == (2, 4)
    assert (out / "SegmentationClass" / f"{names[0]}.png").stat().st_mtime == 1
    assert found(out)[names[2]].max() == 0
    assert run_refine(config(masks)).written == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"iterations": 3}, "iterations"),
        ({"beta": 0.4}, "value"),
        ({"background": "power"}, "background"),
        ({"preset": "affinity"}, "bilateral_sxy"),
        ({"hard": True}, "unary"),
    ],
)
def test_other_settings_are_refused_unless_overwritten(labelled, to, change, named):
    run_refine(config(labelled, **to))
    with pytest.raises(DataError, match=rf"refined with other settings: .*{named} \(there"):
        run_refine(config(labelled, **to, **change))
    assert run_refine(config(labelled, overwrite=True, **to, **change)).written == 6


def test_masks_of_another_labelling_are_refused(masks):
    run_refine(config(masks))
    path = masks / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"flip": False}))
    with pytest.raises(DataError, match=r"label\.flip \(there: True, now: False"):
        run_refine(config(masks))


class Killed(BaseException):
    """As if the process ended."""


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [(Killed(), Killed, None), (OSError(errno.ENOSPC, "No space left on device"), DataError, "free disk space")],
)
def test_a_stopped_run_goes_on_and_leaves_nothing_half_written(labelled, to, monkeypatch, error, raised, message):
    out, count = to["output"], [0]

    def write(path, data, lasting):
        count[0] += 1
        if count[0] > 3:
            raise error
        atomic_write_bytes(path, data, lasting)

    with monkeypatch.context() as patch:
        patch.setattr(mask_folder_module, "atomic_write_bytes", write)
        with pytest.raises(raised, match=message):
            run_refine(config(labelled, workers=1, **to))
    assert len(found(out)) == len(list((out / "SegmentationClass").iterdir())) == len(lines(out)) == 3
    summary = run_refine(config(labelled, workers=1, **to))
    assert (summary.written, summary.skipped) == (3, 3)


def test_hard_masks_with_void_unsure(masks, to, capsys):
    name, entry = next(iter(lines(masks).items()))
    path = masks / "SegmentationClass" / f"{name}.png"
    mask = read_mask(path)
    mask[:8] = 255
    mask[8:16] = 2
    write_mask(path, mask)
    shutil.rmtree(masks / "SoftMaps")
    with pytest.raises(DataError, match=r"SoftMaps: no class maps there.*--soft-maps.*--hard"):
        run_refine(config(masks, **to))
    run_refine(config(masks, hard=True, **to), TerminalProgress())
    assert "hard masks (0.7 sure, void unsure)" in capsys.readouterr().out
    values = np.union1d([0], mask[mask != 255])
    labels = torch.from_numpy(np.where(mask == 255, 255, np.searchsorted(values, mask)))[None]
    image = torch.from_numpy(np.asarray(Image.open(entry["image"]).convert("RGB")).copy())[None]
    refined = dense_crf(image, probabilities_from_labels(labels, len(values), 0.7), **CRF)[0].argmax(0).numpy()
    assert np.array_equal(found(to["output"])[name], values[refined])


def test_an_image_that_moved_is_named_and_found_again_in_its_source(masks, to, labelled, caplog):
    name, entry = next(iter(lines(masks).items()))
    gone = move_image(masks, entry)
    summary = run_refine(config(masks, **to))
    assert (summary.written, summary.failed) == (5, 1)
    error = lines(to["output"])[name]["error"]
    assert gone in error and "--data SOURCE" in error and gone in caplog.text
    summary = run_refine(config(masks, data=f"demo:{labelled.parent / 'demo'}", **to))
    assert (summary.written, summary.skipped, summary.failed) == (1, 5, 0)
    assert lines(to["output"])[name]["image"] == entry["image"]


def test_no_image_is_there(masks, to):
    for entry in lines(masks).values():
        move_image(masks, entry)
    with pytest.raises(DataError, match=r"none of the 6 images could be refined; the first: .*\.moved"):
        run_refine(config(masks, **to))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot read class maps"),
        (lambda path: path.unlink(), "not found; label again with --soft-maps"),
        (lambda path: save(path, size=(5, 7)), "made for 7 x 5 pixels but"),
        (lambda path: save(path, classes=[200]), "maps of class 200"),
    ],
)
def test_class_maps_that_do_not_fit(masks, to, damage, message):
    name = next(iter(lines(masks)))
    damage(masks / "SoftMaps" / f"{name}.npz")
    summary = run_refine(config(masks, **to))
    assert (summary.written, summary.failed) == (5, 1)
    entry = lines(to["output"])[name]
    assert entry["status"] == "error" and message in entry["error"] and f"{name}.npz" in entry["error"]
    assert name not in found(to["output"])


def save(path, classes=(1,), size=None):
    with np.load(path) as arrays:
        size = arrays["size"] if size is None else np.array(size)
    np.savez(path, classes=np.array(classes, np.uint8), maps=np.zeros((1, *map(int, size)), np.uint8), size=size)


def test_an_image_without_any_class_stays_background(masks, to):
    name = next(iter(lines(masks)))
    path = masks / "SoftMaps" / f"{name}.npz"
    size = read_soft_maps(path).size
    np.savez(path, classes=np.zeros(0, np.uint8), maps=np.zeros((0, *size), np.uint8), size=np.array(size))
    run_refine(config(masks, **to))
    assert found(to["output"])[name].max() == 0


def test_a_folder_that_is_not_labelled(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.jsonl: not found; expected a folder that `cpn label` wrote"):
        run_refine(config(tmp_path, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_settings_beta_has_to_be_given(masks, to):
    (masks / "settings.json").unlink()
    with pytest.raises(DataError, match=r"key beta: found None, expected a number in 0..1; give --beta"):
        run_refine(config(masks, **to))
    assert run_refine(config(masks, beta=0.3, **to)).written == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crf": False}, "--crf"),
        ({"iterations": -1}, "--iterations -1"),
        ({"gaussian_sxy": 0.0}, "--gaussian-sxy 0.0"),
        ({"bilateral_compat": -1.0}, "--bilateral-compat -1.0"),
        ({"bilateral_srgb": float("nan")}, "--bilateral-srgb nan"),
        ({"bilateral_sxy": 1e-12}, "larger"),
        ({"beta": 1.5}, "--beta 1.5"),
        ({"beta": 1.0, "background": "power"}, "beta 1.0"),
        ({"alpha": 3.0}, "--background power"),
        ({"alpha": -3.0, "background": "power"}, "--alpha -3"),
        ({"hard": True, "beta": 0.2}, "--hard"),
        ({"gt_prob": 1.0}, "--gt-prob 1.0"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_options_out_of_range(labelled, to, change, message):
    with pytest.raises(DataError, match=message):
        run_refine(config(labelled, **to, **change))
    assert not list(to["output"].rglob("*.png"))


def test_the_folder_that_is_read_is_not_written_to(masks):
    with pytest.raises(DataError, match="give another one"):
        run_refine(config(masks, output=masks.parent / "." / masks.name))


def test_full_disk_is_said_before_the_work(labelled, to, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="free some"):
        run_refine(config(labelled, **to))


def test_a_void_band_that_is_not_applied_is_said(masks, to, caplog):
    path = masks / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"void_band": [0.2, 0.4]}))
    run_refine(config(masks, **to))
    assert "void band [0.2, 0.4] is not applied" in caplog.text


def test_refined_masks_are_scored_by_evaluate(labelled, to):
    run_refine(config(labelled, **to))
    source = f"demo:{labelled.parent / 'demo'}"
    metrics = run_evaluate(EvaluateConfig(to["output"], source, split="val"))
    assert metrics["images"] == 6 and 0 <= metrics["miou"] <= 1
    assert len(open_source(source).records("val")) == 6


def test_scores_that_are_not_finite_make_no_mask(masks, to, monkeypatch):
    """Of one image; as an AffinityNet that diverged gives them."""
    bad = min(lines(masks))
    plain = CrfStep.__call__

    def step(self, image_id, image, scores):
        refined = plain(self, image_id, image, scores)
        return refined * float("nan") if image_id == bad else refined

    monkeypatch.setattr(CrfStep, "__call__", step)
    summary = run_refine(config(masks, soft_maps=True, **to))
    made = lines(to["output"])
    assert (summary.written, summary.failed) == (5, 1) and bad not in found(to["output"])
    assert made[bad]["status"] == "error" and "the refined scores hold NaN or infinity" in made[bad]["error"]


def test_an_output_in_the_data_is_refused_before_anything_is_written(labelled):
    demo = labelled.parent / "demo"
    files = sorted(labelled.parent.rglob("*"))
    places = [demo / "JPEGImages", demo / "JPEGImages/refined", labelled / "SegmentationClass/refined"]
    for place in places:
        with pytest.raises(DataError, match="lies in the data"):
            run_refine(config(labelled, output=place))
    for place in (demo, demo / "SegmentationClass"):  # the ground truth's folder is known from the source
        with pytest.raises(DataError, match="lies in the data"):
            run_refine(config(labelled, output=place, data=f"demo:{demo}"))
    assert sorted(labelled.parent.rglob("*")) == files
