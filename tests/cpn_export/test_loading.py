"""`cpn_fast.load("model.onnx")`: the calls of a run, with onnxruntime alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cpn_fast
from cpn_export.loading import OnnxModel
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import read_labelmap, read_mask

WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "onnx", "lightning_fabric", "cv2", "skimage", "scipy")))
import cpn_fast
model = cpn_fast.load(sys.argv[1])
out = model.labeller()(sys.argv[2] + "/a.png", labels=["cat"])
print(out.mask.shape, int(out.mask.sum()), out.labels, len(out.maps), model.kind)
print(cpn_fast.label(model, sys.argv[2], sys.argv[3], split="all").written)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images, of which the left third is red."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, (height, width) in {"a": (20, 30), "b": (80, 120)}.items():
        image = np.zeros((height, width, 3), np.uint8)
        image[:, : width // 3, 0] = 255
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "labels.csv").write_text("image,labels\na.png,cat\nb.png,dög;cat\n", encoding="utf-8")
    return folder


@pytest.fixture
def model(write_toy_model: Callable[..., Path], tmp_path: Path) -> OnnxModel:
    loaded = cpn_fast.load(write_toy_model(tmp_path / "toy.onnx"))
    assert isinstance(loaded, OnnxModel)
    return loaded


def test_a_photo_an_array_and_a_list(model: OnnxModel, photos: Path) -> None:
    labeller = model.labeller()
    out = labeller(photos / "a.png", labels=["dög"])
    expected = np.zeros((20, 30), np.uint8)
    expected[:, :10] = 1  # the toy calls whatever is red its first class
    assert np.array_equal(out.mask, expected)
    assert out.classes == ("cat", "dög") and out.labels == ("dög",) and out.maps.shape == (1, 20, 30)
    assert np.array_equal(out.maps[0], expected) and out.scores == pytest.approx([0.7, 0.2])
    assert labeller(np.asarray(Image.open(photos / "a.png"))).labels == ("cat",)  # its score is above the threshold
    both = labeller([photos / "a.png", Image.open(photos / "b.png")])
    assert [one.mask.shape for one in both] == [(20, 30), (80, 120)]  # the second was reduced to 64 on the way
    assert both[1].mask[:, :38].all() and not both[1].mask[:, 42:].any()


def test_a_folder_and_again(model: OnnxModel, photos: Path, tmp_path: Path) -> None:
    first = cpn_fast.label(model, photos, tmp_path / "masks", split="all")
    assert (first.written, first.skipped, first.failed) == (2, 0, 0)
    assert read_labelmap(tmp_path / "masks" / "labelmap.txt") == ("cat", "dög")
    assert read_mask(tmp_path / "masks" / "SegmentationClass" / "b.png").shape == (80, 120)
    entries = Manifest(tmp_path / "masks" / "manifest.jsonl").entries()
    assert entries["b"]["labels"] == ["cat", "dög"] and entries["b"]["labels_from"] == "image"
    again = cpn_fast.label(model, photos, tmp_path / "masks", split="all", batch_size=2)
    assert (again.written, again.skipped) == (0, 2)
    with pytest.raises(cpn_fast.DataError, match="max_side"):
        cpn_fast.label(model, photos, tmp_path / "masks", split="all", max_side=32)
    with pytest.raises(cpn_fast.DataError, match="soft_maps: unknown"):
        cpn_fast.label(model, photos, tmp_path / "masks", soft_maps=True)


def test_what_the_file_has_otherwise_is_refused(model: OnnxModel) -> None:
    model.labeller(scales=(1.0,), flip=False, beta=0.25, threshold=0.5, max_side=48)
    for options, message in (
        ({"scales": (0.5, 1.0)}, r"scales \(0.5, 1.0\), but the file was exported with \(1.0,\)"),
        ({"flip": True}, "flip True"),
        ({"beta": 0.3}, "beta 0.3"),
        ({"device": "tpu"}, "'tpu': expected one of auto, cpu, cuda"),
        ({"max_side": 0}, "max_side 0: expected at least 1"),
    ):
        with pytest.raises(cpn_fast.DataError, match=message):
            model.labeller(**options)  # type: ignore[arg-type]


def test_without_torch(model: OnnxModel, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(model.path), str(photos), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(20, 30) 200 ('cat',) 1 cam", "2"]
