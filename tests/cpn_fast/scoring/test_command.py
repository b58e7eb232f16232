"""`cpn evaluate`: every figure against scikit-learn's confusion_matrix, for runs and for folders of masks."""

import json
import shutil
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpn_fast.cam.inference import open_labeller, predictions
from cpn_fast.cam.map_options import MapOptions
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.data.sources.base import FileSource
from cpn_fast.data.sources.demo_scenes import CLASSES
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import spread_evenly
from cpn_fast.data.types import Record
from cpn_fast.files.background_score import REFINED_BETA
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import LOCAL
from cpn_fast.files.masks import write_labelmap, write_mask
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.reader import InferenceOptions
from cpn_fast.metrics.confusion import confusion_of
from cpn_fast.models.cam import CamNet
from cpn_fast.models.labeller import Labeller
from cpn_fast.runs.folder import RunFolder
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_fast.scoring.compare import run_compare
from cpn_fast.scoring.compare_options import CompareConfig
from cpn_fast.scoring.map_counts import MapCounts
from cpn_fast.segment.masks import open_masks

sklearn_metrics = pytest.importorskip("sklearn.metrics")

SCALES = (0.5, 1.0)
LEARNT_HEADS = {"refine": "learnt", "refine_at": "scale"}
LEARNT = MapOptions(SCALES, **LEARNT_HEADS)
SHAPES = [(40, 56), (33, 47), (40, 56), (56, 40)]
LABELS = [(0, 1), (2,), (1, 3), (0,)]
VOID = 255


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four labelled images, three of them with masks (some void; class 3 of the third image is not in its mask)."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    rng = np.random.default_rng(0)
    rows = ["image,labels"]
    for index, ((height, width), labels) in enumerate(zip(SHAPES, LABELS, strict=True)):
        blocks = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        blocks.resize((width, height), Image.Resampling.BICUBIC).save(root / "images" / f"{index}.png")
        rows.append(f"{index}.png,{';'.join(CLASSES[c] for c in labels)}")
        mask = np.zeros((height, width), np.uint8)
        mask[5:20, 8:30] = labels[0] + 1
        mask[4, :] = VOID
        if index != 1:
            write_mask(root / "masks" / f"{index}.png", mask)
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def scored(run, data, tmp_path_factory):
    """One evaluation, the reads and network passes it took, and its output folder."""
    output = tmp_path_factory.mktemp("scores")
    counts = Counter()
    with pytest.MonkeyPatch.context() as patch:
        read, forward = FileSource.read, CamNet.forward
        patch.setattr(FileSource, "read", lambda *a, **k: (counts.update(["read"]), read(*a, **k))[1])
        patch.setattr(CamNet, "forward", lambda *a, **k: (counts.update(["pass"]), forward(*a, **k))[1])
        metrics = run_evaluate(config(run.path, data, output=output))
    return metrics, counts, output


def config(target, data, **more):
    return EvaluateConfig(
        target,
        f"folder:{data}",
        **({"split": "all", "scales": SCALES, "refine": "learnt", "refine_at": "scale", "device": "cpu"} | more),
    )


def sklearn_iou(truths, predicted):
    """IoU of background and classes by scikit-learn's confusion matrix; NaN where a class occurs nowhere."""
    truth = np.concatenate([t[t != VOID] for t in truths])
    guess = np.concatenate([p[t != VOID] for t, p in zip(truths, predicted, strict=True)])
    matrix = sklearn_metrics.confusion_matrix(truth, guess, labels=range(len(CLASSES) + 1)).astype(float)
    with np.errstate(invalid="ignore"):
        return np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))


def test_one_pass_over_the_data(scored):
    _, counts, _ = scored
    assert counts == {"read": len(SHAPES), "pass": len(SHAPES) * len(SCALES)}


def test_every_map_scale_and_beta_equals_sklearn(run, data, scored):
    metrics = scored[0]
    source, labeller = open_source(f"folder:{data}"), open_labeller(run, LEARNT, "cpu", 0.3)
    options = InferenceOptions(per_scale=True, with_mask=True)
    mapping = ClassMapping.between(source.classes, run.classes)
    found = [p for p in predictions(labeller, source, source.records("all"), mapping, options) if p.mask is not None]
    assert len(found) == 3
    truths = [p.mask for p in found]
    assert set(metrics["results"]) == {"cam", "rcam"}
    for name, scales in metrics["results"].items():
        assert set(scales) == {"0.5", "1", "multi"}
        for scale, values in scales.items():
            for index in (0, 7, 29, 30, 57, 100):
                beta = np.float32(index / 100)
                guesses = []
                for p in found:
                    maps = np.zeros((len(CLASSES) + 1, *p.mask.shape), np.float32)
                    maps[0] = beta
                    maps[p.classes + 1] = p.at_image_size(name, scale)
                    guesses.append(maps.argmax(0))
                iou = sklearn_iou(truths, guesses)
                assert values["sweep"]["beta"][index] == index / 100
                assert values["sweep"]["miou"][index] == pytest.approx(np.nanmean(iou), rel=1e-12)
                assert values["sweep"]["background"][index] == pytest.approx(iou[0], rel=1e-12)
                assert values["sweep"]["foreground"][index] == pytest.approx(np.nanmean(iou[1:]), rel=1e-12)
                if beta == np.float32(values["beta"]):
                    assert list(values["per_class"]) == ["background", *CLASSES]
            assert values["miou"] == max(values["sweep"]["miou"])
            assert values["sweep"]["miou"][round(values["beta"] * 100)] == values["miou"]


def test_maps_of_each_scale_equal_the_labelling_module_at_that_scale_alone(run, data):
    source, labeller = open_source(f"folder:{data}"), open_labeller(run, LEARNT, "cpu", 0.3)
    record = source.records("all")[0]
    sample = source.read(record)
    mapping = ClassMapping.between(source.classes, run.classes)
    options = InferenceOptions(per_scale=True)
    (prediction,) = predictions(labeller, source, [record], mapping, options)
    for scales, name in (((0.5,), "0.5"), ((1.0,), "1"), (SCALES, "multi")):
        with torch.no_grad():
            alone = Labeller(run.load_model(), scales)(
                torch.tensor(sample.image)[None], torch.tensor(sample.labels)[None]
            )
        for kind, dense in (("cam", alone.cam), ("rcam", alone.rcam)):
            expected = dense[0].numpy()
            assert expected.max() > 0.5
            np.testing.assert_allclose(prediction.maps[kind, name], expected[list(LABELS[0])], atol=1e-4)
            absent = [c for c in range(len(CLASSES)) if c not in LABELS[0]]
            assert not expected[absent].any()


def test_the_runs_miou_is_the_multi_scale_of_its_own_map(scored):
    metrics, _, output = scored
    multi = metrics["results"]["rcam"]["multi"]
    for key in ("miou", "beta", "background", "foreground", "per_class", "sweep"):
        assert metrics[key] == multi[key]
    assert metrics["map"] == "rcam"
    assert (metrics["images"], metrics["without_mask"], metrics["labels_from_scores"]) == (3, 1, 0)
    assert json.loads((output / "metrics.json").read_text()) == metrics
    with Image.open(output / "beta_sweep.png") as plot:
        assert plot.format == "PNG"
        assert len(plot.convert("P", palette=Image.Palette.ADAPTIVE).getcolors()) > 5


def test_absent_classes_count_in_no_mean(scored):
    metrics = scored[0]
    per_class = metrics["per_class"]
    known = [v for v in per_class.values() if v is not None]
    assert per_class[CLASSES[2]] is None  # only in the image without a mask
    assert per_class[CLASSES[4]] is None
    assert metrics["miou"] == pytest.approx(np.mean(known), rel=1e-12)


def test_classifier_map_equals_sklearn(run, data, scored):
    source, labeller = open_source(f"folder:{data}"), Labeller(run.load_model(), SCALES)
    truth, scores = [], []
    for record in source.records("all"):
        sample = source.read(record)
        with torch.no_grad():
            result = labeller(torch.tensor(sample.image)[None], torch.tensor(sample.labels)[None])
        truth.append(sample.labels)
        scores.append(result.scores[0].numpy())
    present = np.stack(truth).any(0)
    expected = sklearn_metrics.average_precision_score(
        np.stack(truth)[:, present], np.stack(scores)[:, present], average="macro"
    )
    assert scored[0]["classifier"]["map"] == pytest.approx(expected, rel=1e-6)


def test_a_run_keeps_its_beta_in_its_folder(make_run, data, tmp_path):
    run = make_run(tmp_path / "run", method="cam")
    assert RunFolder(run.path).beta == REFINED_BETA
    metrics = run_evaluate(config(run.path, data, scales=(1.0,), flip=False, refine="none"))
    assert set(metrics["results"]) == {"cam"} and metrics["map"] == "cam"
    assert RunFolder(run.path).background_score(None, "none") == metrics["beta"] != REFINED_BETA
    assert RunFolder(run.path).beta == REFINED_BETA  # of the run's own maps, which were not scored
    refined = run_evaluate(config(run.path, data, scales=(1.0,), flip=False, refine="raw", refine_at="fused"))
    assert refined["map"] == "rcam" and RunFolder(run.path).beta == refined["beta"]
    assert (run.path / "beta_sweep.png").is_file()


def test_without_image_labels_the_scores_stand_in(run, data, tmp_path, capsys):
    settings = config(run.path, data, output=tmp_path, scales=(1.0,), use_labels=False)
    metrics = run_evaluate(settings, TerminalProgress())
    assert metrics["labels_from_scores"] == 3
    assert metrics["classifier"] == {"map": None, "f1": None}
    assert "3 without image labels" in capsys.readouterr().out


def test_split_without_any_mask(run, data, tmp_path):
    root = tmp_path / "bare"
    root.mkdir()
    for name in ("images", "labels.csv", "classes.txt"):
        (root / name).symlink_to(data / name)
    with pytest.raises(DataError, match=r"none of the 4 images of split 'all' has .*average precision there is 0\."):
        run_evaluate(config(run.path, root, scales=(1.0,)))
    assert not (run.path / "metrics.json").exists()


def test_mask_of_another_size_than_its_image(run, data, tmp_path):
    root = copy(data, tmp_path)
    write_mask(root / "masks/2.png", np.zeros((56, 40), np.uint8))
    with pytest.raises(DataError, match=r"2\.png: the mask is 40 x 56 .* 56 x 40"):
        run_evaluate(config(run.path, root, output=tmp_path, scales=(0.5,)))


def test_broken_image_stops_a_score(run, data, tmp_path):
    root = copy(data, tmp_path)
    (root / "images/3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png.*every image"):
        run_evaluate(config(run.path, root, output=tmp_path, scales=(0.5,)))


def test_a_tally_names_the_mask_that_does_not_fit(run, data):
    source, labeller = (
        open_source(f"folder:{data}"),
        open_labeller(run, MapOptions((1.0,), flip=False, **LEARNT_HEADS), "cpu", 0.3),
    )
    mapping = ClassMapping.between(source.classes, run.classes)
    options = InferenceOptions(per_scale=True, with_mask=True)
    (prediction,) = predictions(labeller, source, source.records("all")[:1], mapping, options)
    wrong = type(prediction)(**{**prediction.__dict__, "mask": prediction.mask[:-1]})
    with pytest.raises(DataError, match=r"0\.png: the mask is 56 x 39 pixels but the prediction is 56 x 40"):
        MapCounts(source=source, labeller=labeller, mapping=mapping, options=options, device="cpu").work(wrong)


def test_classes_in_another_order_give_the_same_scores(run, data, tmp_path, scored):
    root = copy(data, tmp_path)
    order = CLASSES[::-1]
    (root / "classes.txt").write_text("\n".join(order) + "\n")
    for path in (root / "masks").glob("*.png"):
        mask = np.array(Image.open(path))
        present = (mask > 0) & (mask < VOID)
        mask[present] = [order.index(CLASSES[value - 1]) + 1 for value in mask[present]]
        write_mask(path, mask)
    metrics = run_evaluate(config(run.path, root, output=tmp_path))
    assert metrics["per_class"] == scored[0]["per_class"]


def copy(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / "copy"))


@pytest.fixture
def predicted(data, tmp_path):
    """Random masks for the images with ground truth, in the layout of `cpn label`, some of them void."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "predicted"
    write_labelmap(folder / "labelmap.txt", CLASSES)
    for index in (0, 2, 3):
        mask = rng.integers(0, len(CLASSES) - 1, SHAPES[index]).astype(np.uint8)
        write_mask(folder / "SegmentationClass" / f"{index}.png", mask)
    return folder


def read(path):
    return np.array(Image.open(path))


def test_masks_equal_sklearn(data, predicted):
    metrics = run_evaluate(config(predicted, data))
    truths = [read(data / "masks" / f"{i}.png") for i in (0, 2, 3)]
    guesses = [read(predicted / "SegmentationClass" / f"{i}.png") for i in (0, 2, 3)]
    iou = sklearn_iou(truths, guesses)
    assert list(metrics["per_class"].values())[:-2] == pytest.approx(iou[:-2], rel=1e-12)
    assert [v is None for v in metrics["per_class"].values()] == np.isnan(iou).tolist()
    assert metrics["miou"] == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert (metrics["images"], metrics["without_mask"], metrics["missing"]) == (3, 1, 0)
    assert metrics["beta"] is None and metrics["sweep"] is None
    assert json.loads((predicted / "metrics.json").read_text()) == metrics


def test_perfect_masks(data, tmp_path):
    metrics = run_evaluate(config(data / "masks", data, output=tmp_path))
    assert metrics["miou"] == 1.0


def test_several_folders_are_scored_alike_and_compared(data, predicted, tmp_path, capsys):
    perfect = shutil.copytree(data / "masks", tmp_path / "perfect")
    alone = run_evaluate(config(predicted, data))
    capsys.readouterr()
    assert run_evaluate(config(predicted, data, others=(perfect,)), TerminalProgress()) == alone
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    shown = next(row for row in rows if "+" in row)
    assert "100.0" in shown and f"{100 * (1 - alone['miou']):+.1f}" in shown
    assert json.loads((perfect / "metrics.json").read_text())["miou"] == 1.0
    assert json.loads((predicted / "metrics.json").read_text()) == alone
    with pytest.raises(DataError, match="--output is for one target"):
        run_evaluate(config(predicted, data, others=(perfect,), output=tmp_path))


def test_several_targets_share_what_an_engine_begins(data, predicted, tmp_path, monkeypatch):
    seen = []

    class Watched:
        @contextmanager
        def session(self):
            seen.append("begins")
            yield
            seen.append("ends")

        def crew(self, jobs):
            seen.append("crew")
            return LOCAL.crew(jobs)

    monkeypatch.setattr(EvaluateConfig, "open_engine", lambda _: Watched())
    run_evaluate(config(predicted, data, others=(shutil.copytree(data / "masks", tmp_path / "perfect"),)))
    assert seen == ["begins", "crew", "crew", "ends"]


def test_void_in_a_prediction_is_missed_not_ignored():
    truth = np.array([[0, 0, 1, 1, VOID]], np.uint8)
    guess = np.array([[0, VOID, VOID, 1, 0]], np.uint8)
    assert confusion_of(truth, guess, 1).tolist() == [[1, 0, 1], [0, 1, 1]]


def test_void_lowers_the_score(data, predicted):
    before = run_evaluate(config(predicted, data))["per_class"]["background"]
    for path in (predicted / "SegmentationClass").glob("*.png"):
        mask = read(path)
        mask[30:] = VOID
        write_mask(path, mask)
    metrics = run_evaluate(config(predicted, data))
    truths = [read(data / "masks" / f"{i}.png") for i in (0, 2, 3)]
    guesses = [read(predicted / "SegmentationClass" / f"{i}.png") for i in (0, 2, 3)]
    both = sum(((t == 0) & (g == 0)).sum() for t, g in zip(truths, guesses, strict=True))
    either = sum(((t != VOID) & ((t == 0) | (g == 0))).sum() for t, g in zip(truths, guesses, strict=True))
    assert metrics["per_class"]["background"] == pytest.approx(both / either, rel=1e-12)
    assert metrics["per_class"]["background"] < before
    assert 0.2 < metrics["void_share"] < 0.5


def test_missing_masks(data, predicted):
    (predicted / "SegmentationClass/2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images .*2\.png.*--allow-missing"):
        run_evaluate(config(predicted, data))
    metrics = run_evaluate(config(predicted, data, allow_missing=True))
    assert (metrics["images"], metrics["missing"]) == (2, 1)


def test_predicted_mask_of_another_size(data, predicted):
    write_mask(predicted / "SegmentationClass/3.png", np.zeros((40, 56), np.uint8))
    with pytest.raises(DataError, match=r"masks/3\.png and .*SegmentationClass/3\.png: the mask is 40 x 56 .* 56 x 40"):
        run_evaluate(config(predicted, data))


def test_mask_with_a_value_that_is_no_class(data, predicted):
    write_mask(predicted / "SegmentationClass/3.png", np.full(SHAPES[3], 77, np.uint8))
    with pytest.raises(DataError, match=r"SegmentationClass/3\.png.*77"):
        run_evaluate(config(predicted, data))


def test_some_images_are_spread_evenly_over_those_with_masks(data, predicted, tmp_path):
    """Of the images 0, 2, 3 with masks, two at most are the first and the last."""
    for path in (data / "masks" / "0.png", data / "masks" / "3.png"):
        shutil.copy(path, predicted / "SegmentationClass" / path.name)
    some = run_evaluate(config(predicted, data, images=2, output=tmp_path))
    assert (some["images"], some["without_mask"], some["miou"]) == (2, 0, 1.0)
    every = run_evaluate(config(predicted, data, images=9, output=tmp_path))
    assert every["images"] == 3 and every["miou"] < 1
    with pytest.raises(DataError, match="--images 0"):
        run_evaluate(config(predicted, data, images=0))


def test_spread_evenly_by_hand():
    records = [Record(str(index), Path(f"{index}.png"), (), Path("m") if index % 2 else None) for index in range(10)]
    assert [record.id for record in spread_evenly(records, 3)] == ["1", "5", "9"]
    assert [record.id for record in spread_evenly(records, 1)] == ["1"]
    assert [record.id for record in spread_evenly(records[::2], 3)] == ["0", "4", "8"]
    assert spread_evenly(records, None) == records


def test_target_that_is_neither(data, tmp_path):
    with pytest.raises(DataError, match=r"neither a run \(config\.json\) nor a folder of masks"):
        run_evaluate(config(tmp_path / "nothing", data))


def test_masks_of_0_and_255_give_no_score_and_no_beta(run, data, tmp_path, caplog):
    """All background would be perfect at beta 1, whatever the maps: nothing is taken from that."""
    blind = shutil.copytree(data, tmp_path / "data")
    for path in (blind / "masks").glob("*.png"):
        write_mask(path, np.where(np.asarray(Image.open(path)) == 0, 0, VOID).astype(np.uint8))
    copy = shutil.copytree(run.path, tmp_path / "run")
    metrics = run_evaluate(config(copy, blind))
    stored = json.loads((copy / "metrics.json").read_text())
    assert metrics["miou"] is metrics["beta"] is stored["miou"] is stored["beta"] is None
    assert all(values["beta"] is None for scales in metrics["results"].values() for values in scales.values())
    assert (
        "no pixel of any class in the ground truth" in caplog.text and f"Write 1..{len(CLASSES)} there" in caplog.text
    )
    assert RunFolder(copy).beta == REFINED_BETA
    caplog.clear()
    for record in open_source(f"folder:{blind}").records("all"):
        write_mask(
            tmp_path / "masks" / f"{record.id}.png", np.zeros(Image.open(record.image_path).size[::-1], np.uint8)
        )
    scores = run_evaluate(config(tmp_path / "masks", blind))
    assert scores["miou"] is scores["foreground"] is scores["background"] is None
    assert set(scores["per_class"].values()) == {None}
    assert "all background would be perfect, so no score is given" in caplog.text
    with pytest.raises(DataError, match="no pixel of any class in the ground truth"):
        run_compare(CompareConfig(str(tmp_path / "masks"), (str(tmp_path / "masks"),), resamples=10))


def test_the_ground_truth_itself_is_refused_as_masks(data):
    before = sorted(data.rglob("*"))
    with pytest.raises(DataError, match=r"are the ground truth of folder:.* itself; give"):
        run_evaluate(config(data / "masks", data))
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("place", [".", "masks", "images/scores"])
def test_scores_are_not_written_into_the_data(run, data, place):
    before = sorted(data.rglob("*"))
    with pytest.raises(DataError, match="lies in the data"):
        run_evaluate(config(run.path, data, output=data / place))
    assert sorted(data.rglob("*")) == before


def test_scores_of_a_half_done_labelling_say_so(data, tmp_path, caplog):
    for name in ("0", "2"):
        shutil.copy2(data / f"masks/{name}.png", tmp_path / f"{name}.png")
    (tmp_path / "manifest.jsonl").write_text(
        "".join(json.dumps({"id": name, "status": "ok"}) + "\n" for name in ("0", "2"))
    )
    (tmp_path / "plan.json").write_text(json.dumps({"command": "cpn label R", "ids": ["0", "1", "2", "3"]}))
    assert run_evaluate(config(tmp_path, data, allow_missing=True))["missing"] == 1
    assert f"{tmp_path}: 2 of 4 images have a mask, 1 for instance has none; to finish it: `cpn label R`" in caplog.text


def test_a_folder_of_masks_that_are_no_png_says_so(data, tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "0.bmp")
    with pytest.raises(DataError, match=r"1 masks in .* are no PNG and are not read, such as 0\.bmp; save them as PNG"):
        run_evaluate(config(tmp_path, data))
    with pytest.raises(DataError, match=r"such as 0\.bmp; save them as PNG"):
        open_masks(str(tmp_path), open_source(f"folder:{data}"))
