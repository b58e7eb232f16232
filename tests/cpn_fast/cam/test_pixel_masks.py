"""Training with pixel labels: targets lie where the image's pixels lie, runs begin with another's weights, errors."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cpn_fast.cam.batches import BatchStream
from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.cam.pixel_masks import open_pixel_masks
from cpn_fast.cam.task import run_train
from cpn_fast.config.training import AugmentOptions, MethodOptions, PatchOptions, TrainConfig
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MaskFolder
from tests.grouped import grouped

CLASSES = ("cat", "dog")
SIZES = ((40, 30), (40, 24), (28, 40))


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose red is 80 times the mask's class (240 where it is void), with labels; the last has no mask."""
    root = tmp_path_factory.mktemp("coded")
    rng = np.random.default_rng(0)
    folder = MaskFolder.at(root / "masks")
    rows = ["image,labels"]
    for index, (height, width) in enumerate(SIZES):
        coarse = rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (height // 4 + 1, width // 4 + 1))
        mask = coarse.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = np.where(mask == 255, 240, 80 * mask)
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(root / "images" / f"photo{index}.png")
        rows.append(f"images/photo{index}.png,cat;dog")
        if index < 2:
            folder.write(f"photo{index}", mask)
    folder.write_labelmap(CLASSES)
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def config(root: Path, output: Path, **more) -> TrainConfig:
    values = {
        "data": f"folder:{root}", "output": output, "split": "all", "method": "cam", "backbone": "resnet38_tiny",
        "batch_size": 3, "workers": 0, "eval_every": 0, "accelerator": "cpu", "epochs": 1,
        "augment": AugmentOptions(crop=32, resize=(40, 40), jitter=(0, 0, 0, 0)), "patch": PatchOptions(kind="grid"),
    } | more  # fmt: skip
    return TrainConfig(**grouped(values))


def test_targets_lie_where_the_pixels_lie(coded, tmp_path, caplog) -> None:
    source = open_source(f"folder:{coded}")
    records = source.records("all")
    with caplog.at_level(logging.WARNING):
        masks = open_pixel_masks(coded / "masks", source.classes, records)
    assert "1 of 3 images have no mask" in caplog.text
    stream = BatchStream(source, records, config(coded, tmp_path), 0, 3, masks=masks)
    taught = 0
    for batch in stream:
        assert batch.targets is not None and batch.targets.dtype == torch.uint8
        for name, image, target in zip(batch.ids, batch.images, batch.targets, strict=True):
            padding = (image[..., 1] > 0).numpy()  # only padding has green
            expected = np.where(padding | (image[..., 0] == 240).numpy(), 255, image[..., 0].numpy() // 80)
            expected = np.full_like(expected, 255) if name == "photo2" else expected
            np.testing.assert_array_equal(target.numpy(), expected)
            taught += int((target != 255).sum())
    assert taught > 1000


def test_a_run_with_pixel_labels_from_another_to_its_masks(coded, tmp_path) -> None:
    first = run_train(config(coded, tmp_path / "first", max_steps=1))
    changes = {"init": tmp_path / "first", "pixel_masks": coded / "masks", "max_steps": 1, "lr": 1e-12}
    second = run_train(config(coded, tmp_path / "second", **changes))
    before, after = load_file(first.model_path), load_file(second.model_path)
    assert after.keys() - before.keys() == {"pixels.weight", "pixels.bias"}
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    (step,) = second.records("step")
    assert step["pixels"] > 0 and step["loss"] == pytest.approx(step["cls"] + step["pixels"], rel=1e-5)
    out = tmp_path / "masks"
    summary = run_label(LabelConfig(second.path, f"folder:{coded}", out, split="all", sheet=0, device="cpu"))
    assert summary.written == 3
    assert '"refine": "pixels-raw"' in next(out.glob("*.json")).read_text()
    with pytest.raises(DataError, match="learned no pixel labels"):
        run_label(LabelConfig(first.path, f"folder:{coded}", tmp_path / "no", split="all", refine="pixels"))


def test_errors(coded, tmp_path) -> None:
    first = run_train(config(coded, tmp_path / "first", max_steps=1))
    for changes, message in (
        ({"init": first.path, "weights": tmp_path / "w.pth"}, "give one of them"),
        ({"pixel_masks": tmp_path}, "no masks found"),
        ({"pixel_masks": coded / "masks", "method": "seam"}, "methods cam and cpn"),
        ({"init": tmp_path / "nothing"}, "nothing"),
        ({"pixel_masks": coded / "masks", "options": MethodOptions(teacher=0.9)}, "both label the pixels"),
        ({"method": "seam", "options": MethodOptions(teacher=0.9)}, "teacher is for the methods cam and cpn"),
        ({"options": MethodOptions(teacher=1.0)}, "--options.teacher 1.0: expected 0 or more, below 1"),
        ({"options": MethodOptions(teacher=0.9, teacher_band=(0.6, 0.5))}, "0.6 0.5: expected the lower score first"),
    ):
        with pytest.raises(DataError, match=message):
            run_train(config(coded, tmp_path / "second", **changes))
    source = open_source(f"folder:{coded}")
    records = source.records("all")
    with pytest.raises(DataError, match="none of the 1 images has a mask"):
        open_pixel_masks(coded / "masks", source.classes, records[2:])
    with pytest.raises(DataError, match=r"names dog.*expected classes among cat"):
        open_pixel_masks(coded / "masks", ("cat",), records)
    with pytest.raises(DataError, match="expected those of the training"):
        first.load_into(first.load_model(), "resnet38_tiny", ("cat", "cow"))
