"""float16 and int8: what is converted and what is not, how far masks move, and the table that says so."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the [train] packages")

import onnx  # noqa: E402
from torch import nn  # noqa: E402

from cpn_export.compare_precisions import PrecisionsConfig, main, run_compare_precisions  # noqa: E402
from cpn_export.graph_surgery import trace_network  # noqa: E402
from cpn_export.quantization import Calibration, conversion_of, half_precision  # noqa: E402
from cpn_export.runtime import OnnxLabeller, label_rows  # noqa: E402
from cpn_export.to_onnx import ExportConfig, export_segmenter, run_export  # noqa: E402
from cpn_fast.console.terminal import TerminalProgress  # noqa: E402
from cpn_fast.files.errors import DataError  # noqa: E402
from cpn_fast.files.masks import read_mask  # noqa: E402

pytestmark = pytest.mark.slow

PRECISIONS = ("float16", "int8")
CPU = Path("/proc/cpuinfo")
REDUCED = platform.machine() in ("x86_64", "AMD64") and not (CPU.is_file() and "vnni" in CPU.read_text())
"""Without VNNI an x86 CPU overflows with weights of 8 bits: there int8 is what `--reduce-range` makes."""


@pytest.fixture(scope="module")
def calibration(tmp_path_factory, segmented):
    folder = tmp_path_factory.mktemp("calibration")
    for index in range(8):
        image = segmented.picture(1, 64, 96, seed=50 + index)[0][0]
        Image.fromarray(image).save(folder / f"bild {index}.png")
    return Calibration(folder, images=6, max_side=1024, reduce_range=REDUCED)


@pytest.fixture(scope="module")
def files(tmp_path_factory, segmented, calibration):
    """Precision -> file of the trained segmentation network."""
    found = {"float32": segmented.model}
    for precision in PRECISIONS:
        found[precision] = tmp_path_factory.mktemp("precisions") / f"{precision}.onnx"
        conversion = conversion_of(precision, segmented.segmenter.net.mean, segmented.info.scales, calibration)
        export_segmenter(
            segmented.segmenter, replace(segmented.info, precision=precision), found[precision], conversion
        )
    return found


def intersection_over_union(mask, truth):
    """Mean over the four classes, by sets of pixels."""
    classes = [(mask == value, truth == value) for value in range(4)]
    return float(np.mean([(one & other).sum() / (one | other).sum() for one, other in classes]))


def test_masks_of_an_easy_case_keep_their_quality(files, segmented):
    images, truth = segmented.picture(24, 64, 96, seed=7)
    rows = label_rows([None] * 24, 3)
    found = {
        precision: OnnxLabeller(path, threads=1)(images, rows, with_maps=True) for precision, path in files.items()
    }
    scores = {precision: intersection_over_union(one.mask, truth) for precision, one in found.items()}
    assert scores["float32"] > 0.8
    assert abs(scores["float16"] - scores["float32"]) < 0.002
    assert abs(scores["int8"] - scores["float32"]) < 0.02
    # A class can lose a pixel only where the probabilities move by half its lead over the second.
    ordered = np.sort(found["float32"].maps, axis=1)
    lead = ordered[:, -1] - ordered[:, -2]
    for precision, least_lead in (("float16", 0.02), ("int8", 0.5)):
        same = found[precision].mask == found["float32"].mask
        assert same[lead > least_lead].all(), precision
        assert (lead > least_lead).mean() > 0.8
        assert found[precision].maps.dtype == found[precision].scores.dtype == np.float32
    assert not (found["int8"].maps == found["float32"].maps).all()


def test_cpn_label_runs_them_without_torch(files, calibration, tmp_path, run_without_torch):
    for precision in PRECISIONS:
        done = run_without_torch(files[precision], calibration.folder, "--output", tmp_path / precision, "--threads", 1)
        assert done.returncode == 0, done.stderr
        masks = sorted((tmp_path / precision / "SegmentationClass").glob("*.png"))
        assert len(masks) == 8
        assert max(int(read_mask(path, 3).max()) for path in masks) > 0


def test_files_are_smaller_and_hold_what_they_say(files):
    sizes = {precision: path.stat().st_size for precision, path in files.items()}
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert sizes["int8"] < 0.4 * sizes["float32"]
    shapes = {}
    for precision, path in files.items():
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert OnnxLabeller(path).info.precision == precision
        shapes[precision] = [str(value) for value in (*model.graph.input, *model.graph.output)]
        assert not model.functions and {node.domain for node in model.graph.node} == {""}
    assert shapes["float16"] == shapes["int8"] == shapes["float32"]


def test_scales_share_the_weights_and_what_surrounds_the_network_is_float32(files):
    half, whole = (onnx.load(files[precision]).graph for precision in PRECISIONS)
    types = {weight.name: weight.data_type for weight in half.initializer}
    convolutions = [node for node in half.node if node.op_type == "Conv"]
    assert len(convolutions) == 2 * len({node.input[1] for node in convolutions})  # two scales
    assert {types[node.input[1]] for node in convolutions} == {onnx.TensorProto.FLOAT16}
    inferred = onnx.shape_inference.infer_shapes(onnx.load(files["float16"])).graph.value_info
    element = {value.name: value.type.tensor_type.elem_type for value in inferred}
    for kind in ("Exp", "Resize"):
        outputs = [element[node.output[0]] for node in half.node if node.op_type == kind and node.output[0] in element]
        assert outputs and set(outputs) == {onnx.TensorProto.FLOAT}
    weights = {value.name: onnx.numpy_helper.to_array(value) for value in whole.initializer}
    of_weights = [node for node in whole.node if node.op_type == "DequantizeLinear" and node.input[0] in weights]
    kernels = [node for node in of_weights if weights[node.input[0]].ndim == 4]
    # Of the backbone's one, three, three and three, and the head's two; the classifier stays in float32.
    assert len(kernels) == 12
    for node in kernels:
        assert weights[node.input[0]].dtype == np.int8
        assert len(weights[node.input[1]]) == len(weights[node.input[0]]) > 1  # a step for every output channel
    produced = {output: node for node in whole.node for output in node.output}
    classifiers = [
        node for node in whole.node
        if node.op_type == "Conv" and produced.get(node.input[1]) is None
    ]  # fmt: skip
    assert {weights[node.input[1]].shape for node in classifiers} == {(4, 512, 1, 1)}
    quantised_kinds = {
        consumer.op_type
        for node in whole.node if node.op_type == "DequantizeLinear"
        for consumer in whole.node if node.output[0] in consumer.input
    }  # fmt: skip
    assert quantised_kinds <= {"Conv", "Add", "Relu", "Clip", "QuantizeLinear"}


def test_weights_of_seven_bits(segmented, calibration):
    torch.manual_seed(0)
    part = trace_network(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)), ["logits"])
    largest = {}
    for reduced in (False, True):
        conversion = conversion_of(
            "int8", segmented.segmenter.net.mean, (1.0,), replace(calibration, reduce_range=reduced)
        )
        tensors = [value.const_value.numpy() for value in conversion(part).graph.initializers.values()]
        largest[reduced] = max(int(np.abs(t.astype(int)).max()) for t in tensors if t.dtype == np.int8 and t.ndim == 4)
    assert largest[True] <= 64 < largest[False] <= 128


@pytest.mark.slow
def test_a_cam_network_in_int8(trained, shapes_folder, tmp_path):
    """ResNet38's batch norms before the convolutions, and a refinement that stays in float32."""
    info = OnnxLabeller(trained.model).info
    assert info.refine == "raw"
    int8 = {"precision": "int8", "calibrate": shapes_folder, "reduce_range": REDUCED}
    model = run_export(ExportConfig(trained.run.path, tmp_path / "int8.onnx", info.scales, beta=info.beta, **int8))
    config = PrecisionsConfig((trained.model, model), f"folder:{shapes_folder}", "all", threads=1)
    first, whole = run_compare_precisions(config)
    assert whole.pixels_equal > 0.97 and whole.foreground_pixels_equal > 0.9, whole
    assert whole.foreground > 0.1 * whole.pixels
    assert whole.mib < 0.4 * first.mib


def test_a_weight_beyond_float16_is_refused():
    net = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        net.weight[0, 0] = 7e4
    with pytest.raises(DataError, match=r"weight weight has 70000, expected at most 65504"):
        half_precision(trace_network(net, ["logits"]))


def test_broken_images_are_left_out_of_the_calibration(segmented, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"")
    part, mean = trace_network(nn.Conv2d(3, 2, 1), ["logits"]), segmented.segmenter.net.mean
    with pytest.raises(DataError, match="none of 1 images could be read"):
        conversion_of("int8", mean, (1.0,), Calibration(tmp_path, 8, 1024))(part)
    Image.fromarray(segmented.picture(1, 32, 32)[0][0]).save(tmp_path / "good.png")
    with caplog.at_level(logging.WARNING, logger="cpn_export.quantization"):
        conversion_of("int8", mean, (1.0,), Calibration(tmp_path, 8, 1024))(part)
    assert "excluded from the calibration" in caplog.text and "broken.png" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images \(by suffix\) found"):
        conversion_of("int8", mean, (1.0,), Calibration(tmp_path / "empty", 8, 1024))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "--precision int8 needs images to calibrate on; expected --calibrate FOLDER"),
        (
            {"precision": "float16", "reduce_range": True},
            "--reduce-range is for --precision int8, found --precision float16",
        ),
        ({"calibrate": "photos"}, "--calibrate is for --precision int8, found --precision float32"),
        ({"precision": "int8", "calibrate": "photos", "calibrate_images": 0}, "--calibrate-images is 0"),
    ],
)
def test_options_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        run_export(ExportConfig(tmp_path, tmp_path / "m.onnx", **changes))


@pytest.fixture(scope="module")
def scored(tmp_path_factory, segmented):
    """A folder source with ground truth, in two sizes."""
    root = tmp_path_factory.mktemp("scored")
    rows = ["image,labels"]
    for name in ("images", "masks"):
        (root / name).mkdir()
    for index, size in enumerate([(64, 96), (64, 96), (97, 131), (64, 96)]):
        images, masks = segmented.picture(1, *size, seed=20 + index)
        Image.fromarray(images[0]).save(root / "images" / f"{index}.png")
        Image.fromarray(masks[0]).save(root / "masks" / f"{index}.png")
        rows.append(f"{index}.png,{';'.join(segmented.info.classes[v - 1] for v in np.unique(masks) if v)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "classes.txt").write_text("\n".join(segmented.info.classes) + "\n", encoding="utf-8")
    return root


def test_table_of_variants(files, segmented, scored, tmp_path, capsys):
    config = PrecisionsConfig(
        tuple(files.values()), f"folder:{scored}", "all", threads=1, output=tmp_path / "table.json"
    )
    first, half, whole = run_compare_precisions(config, TerminalProgress())
    truths, masks = [], []
    for index, size in enumerate([(64, 96), (64, 96), (97, 131), (64, 96)]):
        images, truth = segmented.picture(1, *size, seed=20 + index)
        truths.append(truth.ravel())
        masks.append(OnnxLabeller(files["int8"])(images, label_rows([None], 3)).mask.ravel())
    expected = intersection_over_union(np.concatenate(masks), np.concatenate(truths))
    assert whole.miou == pytest.approx(expected)
    assert first.pixels_equal == first.foreground_pixels_equal == 1
    assert first.pixels == half.pixels == sum(map(len, truths))
    assert half.pixels_equal >= whole.pixels_equal > 0.9
    assert len(first.seconds) == 4 and first.milliseconds > 0
    written = json.loads((tmp_path / "table.json").read_text())
    assert [row["precision"] for row in written["precisions"]] == ["float32", "float16", "int8"]
    assert written["precisions"][2]["miou"] == whole.miou and written["images"] == 4
    assert "int8" in capsys.readouterr().out


def test_table_of_a_few_images_without_ground_truth(files, segmented, tmp_path, capsys):
    for index in range(5):
        Image.fromarray(segmented.picture(1, 40, 40, seed=index)[0][0]).save(tmp_path / f"{index}.png")
    rows = ["image,labels", *(f"{index}.png,rot" for index in range(5))]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "classes.txt").write_text("\n".join(segmented.info.classes) + "\n", encoding="utf-8")
    models = [str(files["float32"]), str(files["float16"])]
    assert main([*models, "--data", f"folder:{tmp_path}", "--split", "all", "--images", "2", "--threads", "1"]) == 0
    assert "2 images" in capsys.readouterr().out


def test_models_that_cannot_be_compared(files, trained, capsys):
    rest = ["--data", "demo:", "--images", "1"]
    assert main([str(files["float32"]), *rest]) == 2
    assert "at least two models" in capsys.readouterr().err
    assert main([str(files["float32"]), str(trained.model), *rest]) == 2
    assert "its kind is cam, that of" in capsys.readouterr().err
    assert main([str(files["float32"]), str(files["float16"]), "--data", "demo:", "--images", "0"]) == 2
    assert "--images is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("varied", "plain", "said"),
    [
        (2, 0, "calibrated on 2 image(s), 0 of them plain"),
        (0, 1, "calibrated on 1 image(s), 1 of them plain"),
        (15, 5, "calibrated on 20 image(s), 5 of them plain"),
        (16, 4, None),
    ],
)
def test_calibration_on_few_or_plain_images_says_so(varied, plain, said, tmp_path, caplog):
    noise = np.random.default_rng(0)
    for index in range(varied):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"varied{index}.png")
    for index in range(plain):
        grey = np.full((8, 8, 3), 40 * index, np.uint8)
        grey[0] += 7  # sensor noise and JPEG leave a black picture not quite black
        Image.fromarray(grey).save(tmp_path / f"plain{index}.png")
    conversion = conversion_of("int8", torch.full((3,), 0.5), (1.0,), Calibration(tmp_path, 32, 1024))
    with caplog.at_level(logging.WARNING, logger="cpn_export.quantization"):
        conversion(trace_network(nn.Conv2d(3, 2, 1), ["logits"]))
    warned = [one.getMessage() for one in caplog.records if one.name == "cpn_export.quantization"]
    if said is None:
        assert warned == []
    else:
        (line,) = warned
        assert said in line and "expected at least 16" in line and str(tmp_path) in line and "\n" not in line
