"""An exported segmentation network: the graph equals eager torch, and `cpn-label` runs it like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the [train] packages")

import onnx  # noqa: E402

from cpn_export.agreement import Agreement  # noqa: E402
from cpn_export.label import LabelOnnxConfig, active_labels, run_label_onnx  # noqa: E402
from cpn_export.metadata import ModelInfo  # noqa: E402
from cpn_export.parity import Pair, ParityConfig, compare, run_parity  # noqa: E402
from cpn_export.runtime import OnnxLabeller, label_rows  # noqa: E402
from cpn_export.to_onnx import ExportConfig, run_export  # noqa: E402
from cpn_fast.cli.main import main as cpn  # noqa: E402
from cpn_fast.config.training import SegmentConfig  # noqa: E402
from cpn_fast.data.sources.demo_scenes import CLASSES  # noqa: E402
from cpn_fast.data.sources.open import open_source  # noqa: E402
from cpn_fast.files.errors import DataError  # noqa: E402
from cpn_fast.files.manifest import Manifest  # noqa: E402
from cpn_fast.files.masks import read_mask  # noqa: E402
from cpn_fast.models.build import create_deeplab  # noqa: E402
from cpn_fast.runs.folder import RunFolder  # noqa: E402

pytestmark = pytest.mark.slow

SIZES = [(1, 64, 96), (4, 48, 64), (3, 97, 131), (2, 33, 250), (1, 250, 33), (1, 200, 264), (1, 9, 40), (1, 5, 5)]
"""Batch, height and width: as trained, odd, thin strips, larger than training, and a grid of one pixel."""


@pytest.fixture(scope="module")
def pair(segmented):
    return Pair(segmented.segmenter, OnnxLabeller(segmented.model, threads=1), threads=1)


@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def test_graph_equals_eager(pair, segmented, shape):
    images, _ = segmented.picture(*shape)
    for rows in (label_rows([None] * shape[0], 3), label_rows([(0, 2)] * shape[0], 3)):
        eager, exported = pair.run_eager(images, rows), pair.run_onnx(images, rows)
        assert exported.maps.shape == eager.maps.shape == (shape[0], 4, *shape[1:])
        assert exported.mask.shape == shape and exported.mask.dtype == np.uint8
        np.testing.assert_allclose(exported.scores, eager.scores, atol=1e-4)
        agreement = Agreement()
        agreement.add(eager, exported, shape[0])
        assert agreement.met, agreement
        if min(shape[1:]) >= 33:
            assert (eager.mask > 0).mean() >= 0.05, "a mask without foreground proves little"


def test_mask_and_scores_are_those_of_the_probabilities(pair, segmented):
    images, truth = segmented.picture(4, 64, 96)
    found = pair.run_onnx(images, label_rows([None, (0,), (), (1, 2)], 3))
    np.testing.assert_allclose(found.maps.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.scores, found.maps[:, 1:].max(axis=(2, 3)))
    np.testing.assert_array_equal(found.mask[0], found.maps[0].argmax(axis=0))
    np.testing.assert_array_equal(found.mask[1], found.maps[1, :2].argmax(axis=0))
    assert not found.mask[2].any()
    np.testing.assert_array_equal(found.mask[3], np.array([0, 2, 3])[found.maps[3, [0, 2, 3]].argmax(axis=0)])
    assert (found.mask[0] == truth[0]).mean() > 0.9


def test_file_says_what_it_is(segmented):
    model = onnx.load(segmented.model)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": ["batch", "height", "width", 3],
        "labels": ["batch", 3],
        "probabilities": ["batch", 4, "height", "width"],
        "scores": ["batch", 3],
        "mask": ["batch", "height", "width"],
    }
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    info = OnnxLabeller(segmented.model).info
    assert info == segmented.info
    assert (info.kind, info.precision, info.beta, info.threshold) == ("segmentation", "float32", None, None)
    weights = sum(value.numel() for value in segmented.segmenter.net.state_dict().values()) * 4
    assert segmented.model.stat().st_size < 1.2 * weights, "the two scales share one set of weights"


PEAK = """
import re, sys
import numpy as np
from pathlib import Path
from cpn_export.runtime import OnnxLabeller, label_rows
def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
labeller = OnnxLabeller(Path(sys.argv[1]), threads=1)
for size in (32, int(sys.argv[2])):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kib("VmRSS")
    labeller(np.full((1, size, size, 3), 128, np.uint8), label_rows([None], 3))
print(kib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from Linux's /proc")
def test_memory_grows_with_the_pixels(segmented):
    def extra_kib(side):
        command = [sys.executable, "-c", PEAK, str(segmented.model), str(side)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    plain, large = extra_kib(320), extra_kib(640)
    assert plain > 5_000, "the smaller image must cost something"
    assert large <= 6 * plain, (plain, large)  # four times the pixels, and what the allocator rounds up


@pytest.fixture(scope="module")
def photos(tmp_path_factory, segmented):
    root = tmp_path_factory.mktemp("photos")
    for index in range(3):
        Image.fromarray(segmented.picture(1, 64, 96, seed=index)[0][0]).save(root / f"bild {index}.png")
    return root


def test_cpn_label_runs_it(segmented, photos, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\nbild 1.png,rot\n", encoding="utf-8")
    summary = run_label_onnx(
        LabelOnnxConfig(segmented.model, (photos,), tmp_path / "out", image_labels=table, threads=1)
    )
    assert (summary.written, summary.failed) == (3, 0)
    entries = Manifest(tmp_path / "out" / "manifest.jsonl").entries()
    for index in range(3):
        image, truth = segmented.picture(1, 64, 96, seed=index)
        mask = read_mask(tmp_path / "out" / "SegmentationClass" / f"bild {index}.png", 3)
        entry = entries[f"bild {index}"]
        with torch.no_grad():
            rows = torch.tensor([[1.0, 0, 0]] if index == 1 else [[-1.0, -1, -1]])
            eager = segmented.segmenter(torch.from_numpy(image), rows).mask[0].numpy()
        assert (mask == eager).mean() >= 0.999
        if index == 1:
            assert set(np.unique(mask)) <= {0, 1}
            assert (entry["labels"], entry["labels_from"]) == (["rot"], "image")
        else:
            assert (mask == truth[0]).mean() > 0.9
            expected = [("rot", "grün", "blau")[value - 1] for value in np.unique(mask) if value]
            assert (entry["labels"], entry["labels_from"]) == (expected, "mask") and expected


def test_active_labels(segmented, trained):
    mask, scores = np.array([[0, 3], [3, 1]], np.uint8), np.array([0.2, 0.6, 0.7], np.float32)
    assert active_labels(segmented.info, None, scores, mask) == ([0, 2], "mask")
    assert active_labels(segmented.info, None, scores, np.zeros((2, 2), np.uint8)) == ([], "mask")
    assert active_labels(segmented.info, (1,), scores, mask) == ([1], "image")
    cam = OnnxLabeller(trained.model).info
    assert active_labels(cam, None, scores, mask) == ([1, 2], "scores")
    assert active_labels(cam, None, scores - 0.6, mask) == ([2], "scores")


def test_parity_on_a_source(segmented, pair, shapes_folder, tmp_path):
    config = ParityConfig(
        tmp_path,
        segmented.model,
        f"folder:{shapes_folder}",
        "all",
        images=6,
        min_foreground=0.02,
        variants=2,
        threads=1,
    )
    report = compare(pair, open_source(config.data), config)
    assert report.met, report
    assert report.groups["images"].images >= 6
    assert report.groups["given labels"].images == 2 and report.groups["odd sizes"].images == 2
    assert "own scores" not in report.groups


@pytest.fixture(scope="module")
def segment_run(small_demo, tmp_path_factory):
    """A run of `cpn segment train` with untrained weights that give masks of several classes."""
    run = RunFolder(tmp_path_factory.mktemp("segment") / "run")
    run.path.mkdir()
    config = SegmentConfig(data=f"demo:{small_demo}", output=run.path, backbone="resnet38_tiny", masks="truth")
    run.create(config, CLASSES)
    torch.manual_seed(1)
    net = create_deeplab(config, len(CLASSES))
    with torch.no_grad():
        net.classifier.weight.normal_(std=3)
    run.save_model(net, 0)
    return run


@pytest.mark.slow
def test_masks_equal_those_of_cpn_segment_predict(segment_run, small_demo, tmp_path):
    model = tmp_path / "model.onnx"
    inference = ["--scales", "0.75", "--max-side", "96"]
    assert cpn(["export", str(segment_run.path), "--output", str(model), *inference]) == 0
    info = OnnxLabeller(model).info
    assert (info.kind, info.method, info.backbone) == ("segmentation", "deeplab", "resnet38_tiny")
    assert (info.scales, info.flip, info.max_side, info.classes) == ((0.75,), True, 96, segment_run.classes)
    data = ["--data", f"demo:{small_demo}", "--split", "val"]
    words = ["segment", "predict", str(segment_run.path), *data, "--output", str(tmp_path / "eager"), "--device", "cpu"]
    assert cpn([*words, *inference]) == 0
    images = sorted((small_demo / "JPEGImages").glob("val_*.jpg"))
    run_label_onnx(LabelOnnxConfig(model, tuple(images), tmp_path / "onnx", threads=1))
    classes = set()
    for image in images:
        name = f"SegmentationClass/{image.stem}.png"
        ours, theirs = (read_mask(tmp_path / side / name, len(CLASSES)) for side in ("onnx", "eager"))
        assert (ours == theirs).mean() >= 0.999
        classes |= set(np.unique(ours))
    assert len(classes) > 2, "masks of one class would prove little"
    report = run_parity(
        ParityConfig(segment_run.path, model, f"demo:{small_demo}", "val", images=2, min_foreground=0.05, variants=1)
    )
    assert report.met, report


def test_options_and_models_of_the_other_kind(segment_run, trained, segmented, tmp_path):
    for option in ("beta", "threshold"):
        with pytest.raises(DataError, match=f"--{option} is for CAM networks; .* is a segmentation network"):
            run_export(ExportConfig(segment_run.path, tmp_path / "m.onnx", **{option: 0.5}))
    with pytest.raises(DataError, match=r"a run of task 'train' .*expected one of 'segment'"):
        Pair.of_run(trained.run, segmented.model)


def test_old_files_are_cam_models_and_unknown_kinds_are_refused(write_toy_model, tmp_path, segmented):
    info = segmented.info.to_metadata()
    renamed = {key.replace("precision", "variant"): value.replace("float32", "float16") for key, value in info.items()}
    assert ModelInfo.from_metadata(renamed, "m").precision == "float16"  # as files of earlier versions say it
    old = {key: value for key, value in info.items() if key not in ("cpn_fast.kind", "cpn_fast.precision")}
    found = OnnxLabeller(write_toy_model(tmp_path / "old.onnx", metadata=old)).info
    assert (found.kind, found.precision) == ("cam", "float32")
    with pytest.raises(DataError, match=r"new\.onnx: metadata key cpn_fast\.kind is 'depth', expected one of cam, seg"):
        OnnxLabeller(write_toy_model(tmp_path / "new.onnx", metadata={**info, "cpn_fast.kind": '"depth"'}))
    with pytest.raises(DataError, match=r"cpn_fast\.beta is None, expected JSON"):
        OnnxLabeller(write_toy_model(tmp_path / "m.onnx", metadata={k: v for k, v in info.items() if "beta" not in k}))
