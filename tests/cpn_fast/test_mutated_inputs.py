"""Some hundred seeded mutations of every input format: each is read to something of the right kind, or a DataError.

Nothing else may come out: no other exception, no wait, no memory beyond what the format allows. What one-off cases have
to give exactly is tested beside the readers.
"""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.faults.damaged import write_weights
from benchmarks.faults.mutate import bytes_mutations, json_mutations, text_mutations
from cpn_fast.config.serialise import config_to_dict
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.sources.coco import CocoSource
from cpn_fast.data.sources.folder import FolderSource
from cpn_fast.data.sources.voc import VOC_CLASSES, VocSource
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import image_size, read_image
from cpn_fast.files.labelmap import read_labelmap_file
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import read_classes, read_mask
from cpn_fast.files.output_folder import read_settings
from cpn_fast.files.soft_maps import SoftMaps, read_soft_maps, write_soft_maps
from cpn_fast.models.weights.pretrained import read_weights
from cpn_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from cpn_fast.runs.folder import RunFolder

MAX_GROWTH_MIB = 500
MAX_PIXELS = 1_000_000

HEIGHT, WIDTH = 12, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
VALUES = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), (HEIGHT, WIDTH))


def outcomes(mutations: Iterator[bytes], path: Path, read: Callable[[], None]) -> tuple[int, int]:
    """Read every mutation; how many were read and how many refused. Memory may grow by `MAX_GROWTH_MIB` over them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = refused = 0
    for number, content in enumerate(mutations):
        path.write_bytes(content)
        try:
            read()
            good += 1
        except DataError as error:
            refused += 1
            assert len(str(error)) < 10_000, f"mutation {number}"
        except Exception as error:
            raise AssertionError(f"mutation {number} of {path.name}: {error!r}: {content[:300]!r}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MAX_GROWTH_MIB
    return good, refused


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format=kind, **options)
    return data.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
def test_images(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.img"
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}

    def read() -> None:
        image = read_image(path, MAX_PIXELS)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert image_size(path) == image.shape[1::-1]

    content = encoded(Image.fromarray(PIXELS), kind, **options)
    _, refused = outcomes(bytes_mutations(content, 200, 1), path, read)
    assert refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "PPM"])
def test_masks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"

    def read() -> None:
        mask = read_mask(path, 2, MAX_PIXELS)
        assert mask.dtype == np.uint8 and mask.ndim == 2 and set(np.unique(mask)) <= {0, 1, 2, 255}

    _, refused = outcomes(bytes_mutations(encoded(Image.fromarray(VALUES), kind), 200, 2), path, read)
    assert refused


def test_soft_maps(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    maps = np.random.default_rng(2).random((2, HEIGHT, WIDTH), dtype=np.float32)
    write_soft_maps(path, SoftMaps(np.array([1, 3], np.uint8), maps, (HEIGHT, WIDTH)))

    def read() -> None:
        soft = read_soft_maps(path)
        assert np.isfinite(soft.maps).all() and soft.maps.min() >= 0 and soft.maps.max() <= 1
        assert soft.at_image_size().shape == (len(soft.classes), *soft.size)

    good, refused = outcomes(bytes_mutations(path.read_bytes(), 400, 3), path, read)
    assert good and refused


CSV = "image,labels,split,mask\na.png,cat;dog,train,m/a.png\nb.png,background,val,\nc.png,,train,\n"


def test_label_tables(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    (tmp_path / "m").mkdir()
    Image.fromarray(VALUES).save(tmp_path / "m" / "a.png")

    def read() -> None:
        source = FolderSource(tmp_path)
        for split in source.splits():
            for record in source.scan(split).records:
                assert set(record.labels or ()) <= set(range(len(source.classes)))
                assert record.mask_path is None or tmp_path in record.mask_path.resolve().parents

    good, refused = outcomes(text_mutations(CSV, 300, 4), tmp_path / "labels.csv", read)
    assert good and refused


XML = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<annotation>\n<filename>a.png</filename>\n<object>\n<name>dog</name>\n'
    "<bndbox><xmin>1</xmin></bndbox>\n</object>\n<object>\n<name>cat</name>\n</object>\n</annotation>\n"
)


def test_voc_annotations_and_lists(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(PIXELS).save(tmp_path / "JPEGImages" / "a.png")
    annotation, names = tmp_path / "Annotations" / "a.xml", tmp_path / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("a\n")
    refused = 0

    def read() -> None:
        nonlocal refused
        scan = VocSource(tmp_path).scan("train")
        refused += bool(scan.problems)
        assert all(set(record.labels or ()) <= set(range(len(VOC_CLASSES))) for record in scan.records)

    outcomes(text_mutations(XML, 250, 5), annotation, read)
    annotation.write_text(XML)
    outcomes(text_mutations("a\n/JPEGImages/a.png /SegmentationClass/a.png\n", 100, 6), names, read)
    assert refused > 50


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [[1, 1, 8, 1, 8, 6, 1, 6]]},
        {"id": 2, "image_id": 1, "category_id": 5, "iscrowd": 1,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 40, HEIGHT * WIDTH - 140]}},
        {"id": 3, "image_id": 1, "category_id": 5, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "P30O0d2"}},
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_coco(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "val" / "a.png")
    path = tmp_path / "annotations" / "instances_val.json"

    def read() -> None:
        source = CocoSource(tmp_path)
        for record in source.scan("val").records:
            mask = source.read_mask(record)
            assert mask is not None and mask.shape == (HEIGHT, WIDTH)
            assert set(np.unique(mask).tolist()) <= {*range(len(source.classes) + 1), 255}

    good, refused = outcomes(json_mutations(COCO, 500, 7), path, read)
    assert good and refused
    outcomes(text_mutations(json.dumps(COCO), 200, 8), path, read)


ENTRIES = [
    {"id": "a", "status": "ok", "image": "a.png", "width": 3, "height": 4, "labels": ["cat"], "labels_from": "image"},
    {"id": "b", "status": "error", "image": "b.png", "error": "broken"},
]


def test_manifests_settings_and_lists(tmp_path: Path) -> None:
    def manifest() -> None:
        for name, entry in Manifest(tmp_path / "m.jsonl").entries().items():
            assert entry["id"] == name and isinstance(entry["status"], str)

    lines = (json.dumps(json.loads(text)).encode() for text in json_mutations(ENTRIES, 150, 9))
    outcomes((b"\n".join(line.strip(b"[]").split(b"}, {")) for line in lines), tmp_path / "m.jsonl", manifest)
    text = "".join(json.dumps(entry) + "\n" for entry in ENTRIES)
    outcomes(text_mutations(text, 150, 10), tmp_path / "m.jsonl", manifest)
    outcomes(text_mutations('{"beta": 0.3, "classes": ["a"]}', 100, 11), tmp_path / "s.json",
             lambda: assert_dict(read_settings(tmp_path / "s.json")))  # fmt: skip
    labelmap = "background:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    outcomes(text_mutations(labelmap, 150, 12), tmp_path / "labelmap.txt",
             lambda: assert_names(read_labelmap_file(tmp_path / "labelmap.txt").classes))  # fmt: skip
    outcomes(text_mutations("cat\ndog\n", 100, 13), tmp_path / "classes.txt",
             lambda: assert_names(read_classes(tmp_path / "classes.txt")))  # fmt: skip


def assert_dict(value: Any) -> None:
    assert isinstance(value, dict)


def assert_names(names: tuple[str, ...]) -> None:
    assert all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)


@pytest.mark.filterwarnings("ignore")
def test_weights_and_checkpoints(tmp_path: Path) -> None:
    write_weights(tmp_path)
    save_checkpoint(tmp_path / "last.ckpt", {"step": 1, "config": {}, "classes": ["a"],
                                             "model": {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(2)},
                                             "optimizer": {}, "scaler": {}})  # fmt: skip
    for name, count in (("w.safetensors", 200), ("w.params", 200), ("w.pth", 60)):
        path = tmp_path / name
        good, refused = outcomes(
            bytes_mutations(path.read_bytes(), count, 14), path, lambda path=path: assert_dict(read_weights(path))
        )
        assert refused > count // 10, (good, refused)
    path = tmp_path / "last.ckpt"
    outcomes(bytes_mutations(path.read_bytes(), 60, 15), path, lambda: assert_dict(load_checkpoint(path)))


def test_run_settings(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    content = {
        "format": 1,
        "stage": "train",
        "config": config_to_dict(TrainConfig(data="demo:", output=tmp_path, backbone="resnet38_tiny")),
        "classes": ["cat", "dog"],
        "backend_version": None,
        "versions": {},
    }

    def read() -> None:
        assert isinstance(run.config, TrainConfig)
        assert_names(run.classes)

    good, refused = outcomes(json_mutations(content, 250, 16), run.config_path, read)
    assert good and refused
    run.config_path.write_text(json.dumps(content))
    outcomes(json_mutations({"beta": 0.4, "miou": 0.5}, 60, 17), run.scores_path, lambda: assert_score(run.beta))


def assert_score(beta: float) -> None:
    assert isinstance(beta, float) and 0 <= beta <= 1
