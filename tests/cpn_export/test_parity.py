"""The exported model labels as the run does, at any size and batch; and the program that measures it can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] packages")

import onnx  # noqa: E402

from cpn_export.agreement import MAPS_BAR, Agreement, Outputs  # noqa: E402
from cpn_export.parity import Pair, ParityConfig, main, run_parity  # noqa: E402
from cpn_export.runtime import OnnxLabeller, label_rows  # noqa: E402
from cpn_export.to_onnx import ExportConfig, run_export  # noqa: E402
from cpn_fast.files.errors import DataError  # noqa: E402

pytestmark = pytest.mark.slow

SIZES = [(1, 64, 96), (3, 64, 96), (2, 97, 131), (1, 33, 500), (2, 500, 33), (1, 200, 264), (1, 9, 40), (1, 5, 5)]
"""Batch, height and width: as trained, odd, thin strips, larger than training, and a grid of one pixel."""


@pytest.fixture(scope="module")
def pair(trained):
    return Pair.of_run(trained.run, trained.model, threads=1)


@pytest.fixture(scope="module")
def picture():
    """Make a batch of images of coloured ellipses with their labels: `picture(count, height, width)`."""
    from PIL import Image

    def make(count, height, width, seed=0):
        rng = np.random.default_rng(seed)
        images, labels = [], []
        for _ in range(count):
            blobs = rng.integers(70, 150, (6, 8, 3), dtype=np.uint8)
            c = int(rng.integers(3))
            blobs[1:5, 2:6] = 60
            blobs[1:5, 2:6, c] = 230
            images.append(np.asarray(Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)))
            labels.append((c, (c + 1) % 3))
        return np.stack(images), label_rows(labels, 3)

    return make


@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def test_graph_equals_eager(pair, picture, shape):
    images, labels = picture(*shape)
    for rows in (labels, np.full_like(labels, -1)):
        eager, exported = pair.run_eager(images, rows), pair.run_onnx(images, rows)
        assert exported.maps.shape == eager.maps.shape == (shape[0], 3, *shape[1:])
        assert exported.mask.shape == shape and exported.mask.dtype == np.uint8
        np.testing.assert_allclose(exported.scores, eager.scores, atol=1e-5)
        agreement = Agreement()
        agreement.add(eager, exported, shape[0])
        assert agreement.maps_close >= MAPS_BAR, agreement
        assert agreement.met, agreement
        if min(shape[1:]) >= 33:
            assert (eager.mask > 0).mean() >= 0.1, "a mask without foreground proves little"


def test_complementary_pairs_are_part_of_the_graph(trained, picture, tmp_path):
    config = ExportConfig(trained.run.path, tmp_path / "pairs.onnx", scales=(1.0, 1.5), refine="raw", pairs=1)
    run_export(config)
    pairs = Pair.of_run(trained.run, config.output, threads=1)
    assert pairs.onnx.info.pairs == 1 and len(pairs.eager.shown) == 1
    found = []
    for shape in ((2, 64, 96), (1, 97, 131)):
        images, labels = picture(*shape)
        eager, exported = pairs.run_eager(images, labels), pairs.run_onnx(images, labels)
        agreement = Agreement()
        agreement.add(eager, exported, shape[0])
        assert agreement.met, agreement
        found.append((images, labels, exported.maps))
    pairs.eager.shown = pairs.eager.shown[:0]  # the image alone
    for images, labels, maps in found:
        assert np.abs(maps - pairs.run_eager(images, labels).maps).max() > 0.01


def test_rows_of_a_batch_keep_to_themselves(pair, picture):
    images, labels = picture(3, 64, 96)
    labels[1] = -1
    together = pair.run_onnx(images, labels)
    for index in range(3):
        alone = pair.run_onnx(images[index : index + 1], labels[index : index + 1])
        np.testing.assert_allclose(together.maps[index], alone.maps[0], atol=1e-4)
        np.testing.assert_allclose(together.scores[index], alone.scores[0], atol=1e-5)


def test_labels_rule_the_mask(pair, picture):
    images, labels = picture(2, 64, 96)
    labels[:] = 0
    labels[0, 2] = 1
    found = pair.run_onnx(images, labels)
    assert set(np.unique(found.mask[0])) <= {0, 3}
    assert not found.mask[1].any() and not found.maps[1].any()  # no class at all: background everywhere
    assert not found.maps[0, :2].any()


def test_file_says_what_it_is(trained):
    model = onnx.load(trained.model)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": ["batch", "height", "width", 3],
        "labels": ["batch", 3],
        "rcam": ["batch", 3, "height", "width"],
        "scores": ["batch", 3],
        "mask": ["batch", "height", "width"],
    }
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types["image"] == types["mask"] == onnx.TensorProto.UINT8
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    info = OnnxLabeller(trained.model).info
    assert info.classes == trained.run.classes
    assert (info.beta, info.scales, info.flip, info.max_side, info.threshold) == (0.3, (0.5, 1.0), True, 1024, 0.5)
    assert (info.method, info.backbone, info.map_norm) == ("cpn", "resnet38_tiny", "minmax")


def test_scales_share_one_set_of_weights(trained):
    weights = trained.run.model_path.stat().st_size
    assert trained.model.stat().st_size < 1.15 * weights


def test_pixel_correlation_is_a_loop_over_blocks(trained):
    model = onnx.load(trained.model, load_external_data=False)
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    assert len(loops) == 1  # the sum of the scales is refined once


PEAK = """
import re, sys
import numpy as np
from pathlib import Path
from cpn_export.runtime import OnnxLabeller, label_rows
def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
labeller = OnnxLabeller(Path(sys.argv[1]), threads=1)
for side in (32, int(sys.argv[2])):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kib("VmRSS")
    labeller(np.full((1, side, side, 3), 128, np.uint8), label_rows([(0,)], 3))
print(kib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from Linux's /proc")
def test_memory_grows_with_the_pixels_not_their_square(trained):
    def extra_kib(side):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(trained.model), str(side)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    small, large = extra_kib(320), extra_kib(640)
    # The affinity of 2 x 6400 pixels alone, were it kept whole, is 320 MB; that of 2 x 1600 pixels 20 MB.
    assert small > 5_000, "the smaller image must cost something"
    assert large <= 4.5 * small, (small, large)


def test_comparison_on_a_source(trained, shapes_folder, tmp_path):
    config = ParityConfig(
        trained.run.path, trained.model, f"folder:{shapes_folder}", "all", images=9, variants=2, threads=1,
        output=tmp_path / "parity.json",
    )  # fmt: skip
    report = run_parity(config)
    assert report.met
    images = report.groups["images"]
    assert images.images >= 9 and len(images.sizes) >= 2 and len(images.batches) >= 2
    assert report.eager_seconds > 0 and report.onnx_seconds > 0
    written = json.loads((tmp_path / "parity.json").read_text())
    assert written["groups"]["images"]["pixels_equal"] == images.pixels_equal
    assert written["met"] is True


def test_comparison_sees_too_few_images_and_another_model(trained, shapes_folder, tmp_path, capsys):
    data = ["--data", f"folder:{shapes_folder}", "--split", "all", "--threads", "1", "--variants", "0"]
    assert main([str(trained.run.path), str(trained.model), *data, "--images", "17"]) == 1
    # The same graph with another weight of the classifier.
    model = onnx.load(trained.model)
    weight = next(w for w in model.graph.initializer if w.name.endswith("classifier.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1, axis=0), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    assert main([str(trained.run.path), str(tmp_path / "other.onnx"), *data, "--images", "4"]) == 1
    assert "parity does NOT hold" in capsys.readouterr().out


def test_shares_by_hand():
    rcam = np.zeros((1, 2, 2, 5), np.float32)
    rcam[:, 0] = 0.5
    mask = np.zeros((1, 2, 5), np.uint8)
    mask[0, 0] = 1
    shifted, relabelled = rcam.copy(), mask.copy()
    shifted[0, 0, 0, 0] += 2e-3
    shifted[0, 0, 0, 1] += 5e-4
    relabelled[0, 0, 0] = 0
    relabelled[0, 1, 4] = 2
    agreement = Agreement()
    scores = np.zeros((1, 2), np.float32)
    agreement.add(Outputs(rcam, scores, mask), Outputs(shifted, scores, relabelled), 1)
    assert agreement.maps_close == 9 / 10  # the map of the absent class doesn't count
    assert agreement.pixels_equal == 8 / 10
    assert agreement.foreground_pixels_equal == 4 / 6
    assert not agreement.met


def test_pair_of_other_classes(trained, write_toy_model, tmp_path):
    with pytest.raises(DataError, match="its classes are not those of"):
        Pair.of_run(trained.run, write_toy_model(tmp_path / "toy.onnx"))
