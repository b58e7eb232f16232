"""`cpn segment evaluate`: every figure against scikit-learn on masks that were written before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.data.sources.voc import VOC_CLASSES
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_mask, write_mask
from cpn_fast.segment.evaluate import SegmentEvaluateConfig, run_segment_evaluate
from cpn_fast.segment.predict import PredictConfig, run_segment_predict
from tests.cpn_fast.segment.test_predict import make_segment_run
from tests.cpn_fast.segment.voc_squares import make


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run beside its data `voc`; do not change them."""
    folder = tmp_path_factory.mktemp("segment")
    return make_segment_run(folder / "run", make(folder / "voc"))


def expected(data: Path, masks: Path, split: str) -> dict:
    """IoU of all pixels of the split at once."""
    truth, found = [], []
    for path in sorted((data / "SegmentationClass").glob(f"{split}_*.png")):
        mask = read_mask(path)
        truth.append(mask[mask != 255])
        found.append(read_mask(masks / "SegmentationClass" / path.name)[mask != 255])
    truth, found = np.concatenate(truth), np.concatenate(found)
    present = np.union1d(truth, found)
    scores = jaccard_score(truth, found, labels=present, average=None, zero_division=0)
    names = np.array(["background", *VOC_CLASSES])
    return {
        "miou": scores.mean(),
        "background": scores[0],
        "foreground": scores[1:].mean(),
        "per_class": dict(zip(names[present], scores, strict=True)),
    }


def test_every_row_equals_scikit_learn_on_the_predicted_masks(run: Path, tmp_path: Path) -> None:
    data = run.parent / "voc"
    common: dict = {"split": "train", "device": "cpu", "iterations": 2}
    config = SegmentEvaluateConfig(run, f"voc:{data}", output=tmp_path, scales=(0.5, 1.5), crf=True, **common)
    metrics = run_segment_evaluate(config)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    inferences: dict[str, dict] = {
        "single scale": {"scales": (1.0,), "flip": False},
        "multi-scale": {"scales": (0.5, 1.5)},
        "multi-scale + CRF": {"scales": (0.5, 1.5), "crf": True},
    }
    assert list(metrics["results"]) == list(inferences)
    for number, (name, values) in enumerate(inferences.items()):
        masks = tmp_path / f"masks {number}"
        run_segment_predict(PredictConfig(run, f"voc:{data}", output=masks, **common, **values))
        wanted, found = expected(data, masks, "train"), metrics["results"][name]
        for figure in ("miou", "background", "foreground"):
            assert found[figure] == pytest.approx(wanted[figure], abs=1e-12), (name, figure)
        assert {key: value for key, value in found["per_class"].items() if value is not None} == pytest.approx(
            wanted["per_class"], abs=1e-12
        )
    assert metrics["miou"] == metrics["results"]["multi-scale + CRF"]["miou"]
    assert len({values["miou"] for values in metrics["results"].values()}) == 3
    assert (metrics["images"], metrics["without_mask"], metrics["crf"]["iterations"]) == (4, 0, 2)


def test_without_crf_the_metrics_are_of_multi_scale(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"voc:{run.parent / 'voc'}"
    settings = SegmentEvaluateConfig(run, data, output=tmp_path, scales=(0.5, 1.0), device="cpu")
    metrics = run_segment_evaluate(settings, TerminalProgress())
    assert list(metrics["results"]) == ["single scale", "multi-scale"] and metrics["inference"] == "multi-scale"
    assert metrics["miou"] == metrics["results"]["multi-scale"]["miou"] and metrics["images"] == 3
    shown = capsys.readouterr().out
    assert f"{100 * metrics['miou']:.1f}" in shown and "3 images scored" in shown


def test_images_without_truth_are_left_out_and_none_is_an_error(run: Path, tmp_path: Path) -> None:
    data = make(tmp_path / "voc")
    (data / "SegmentationClass" / "val_5.png").unlink()
    config = SegmentEvaluateConfig(run, f"voc:{data}", output=tmp_path, scales=(1.0,), device="cpu")
    metrics = run_segment_evaluate(config)
    assert (metrics["images"], metrics["without_mask"]) == (2, 1)
    for path in (data / "SegmentationClass").glob("val_*.png"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 3 images of split 'val' has a mask"):
        run_segment_evaluate(config)


def test_an_image_that_cannot_be_read_is_an_error(run: Path, tmp_path: Path) -> None:
    data = make(tmp_path / "voc")
    (data / "JPEGImages" / "val_5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"val_5\.png.*a score needs every image"):
        run_segment_evaluate(
            SegmentEvaluateConfig(run, f"voc:{data}", output=tmp_path, scales=(1.0,), crf=True, device="cpu")
        )
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("value", [0, 255])
def test_a_truth_without_any_class_gives_no_score(
    value: int, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make(tmp_path / "voc")
    for path in (data / "SegmentationClass").glob("val_*.png"):
        with Image.open(path) as mask:
            size = mask.size
        write_mask(path, np.full(size[::-1], value, np.uint8))
    settings = SegmentEvaluateConfig(run, f"voc:{data}", output=tmp_path, scales=(1.0,), device="cpu")
    metrics = run_segment_evaluate(settings)
    assert {values["miou"] for values in metrics["results"].values()} == {None} and metrics["background"] is None
    assert "all background would be perfect, so no score is given" in caplog.text
