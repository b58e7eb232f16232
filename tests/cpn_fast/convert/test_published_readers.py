"""Our files through the readers that tools publish, each where it is installed.

None of them is a dependency of the tests: datumaro pins an older OpenCV, the others bring dozens of packages. To run
this file, install them into an environment of its own, e.g. `pip install datumaro supervision datasets shapely` and
`pip install label-studio-sdk`, and call pytest with `--noconftest`.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpn_fast.convert.command import ConvertConfig, run_convert
from cpn_fast.convert.polygons import fill, polygons
from cpn_fast.convert.rle_pack import pack_region, unpack_region
from cpn_fast.files.masks import write_labelmap, write_mask
from tests.cpn_fast.convert import example
from tests.cpn_fast.convert.example import CLASSES, without_void

MASKS = {name: example.masks()[name] for name in ("ring", "sub folder/void ü.x")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The example without the names that some formats have to change."""
    example.write(tmp_path)
    for folder in (tmp_path / "masks" / "SegmentationClass", tmp_path / "photos"):
        (folder / "#noise?.png").unlink()
        shutil.rmtree(folder / "sub folder" / "images")
    return tmp_path


def convert(root: Path, form: Any, **options: Any) -> Path:
    run_convert(ConvertConfig(root / "masks", form, root / "out", images=root / "photos", **options))
    return root / "out"


def drawn(item: Any, labels: list[str]) -> np.ndarray:
    """The masks of a Datumaro item, in our values; unnamed labels are 255."""
    mask = np.zeros(example.SIZE, dtype=np.uint8)
    for annotation in item.annotations:
        name = labels[annotation.label]
        mask[annotation.image.astype(bool)] = CLASSES.index(name) + 1 if name in CLASSES else 255
    return mask


@pytest.mark.parametrize(
    ("form", "reader", "void"),
    [("datumaro", "datumaro", False), ("voc", "voc_segmentation", True), ("cvat", "voc_segmentation", False)],
)
def test_datumaro(root: Path, form: Any, reader: str, void: bool) -> None:
    """CVAT's own importer of "Segmentation mask 1.1" is Datumaro's reader of VOC."""
    datumaro = pytest.importorskip("datumaro")
    output = convert(root, form, **({} if form == "cvat" else {"copy_images": True}))
    if form == "cvat":
        with zipfile.ZipFile(output) as archive:
            archive.extractall(root / "unpacked")
        output = root / "unpacked"
    found = datumaro.Dataset.import_from(str(output), reader)
    labels = [label.name for label in found.categories()[datumaro.AnnotationType.label]]
    assert [name for name in labels if name in CLASSES] == list(CLASSES)
    items = {item.id: drawn(item, labels) for item in found}
    assert sorted(items) == sorted(MASKS)
    for name, mask in MASKS.items():
        np.testing.assert_array_equal(items[name], mask if void else without_void(mask))


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_datumaro_reads_the_coco_json(root: Path, shapes: Any) -> None:
    datumaro = pytest.importorskip("datumaro")
    target = root / "coco" / "annotations" / "instances_train.json"
    target.parent.mkdir(parents=True)
    shutil.copy(convert(root, "coco", shapes=shapes), target)
    shutil.copytree(root / "photos", root / "coco" / "images" / "train")
    found = datumaro.Dataset.import_from(str(root / "coco"), "coco_instances")
    assert {item.id: len(item.annotations) for item in found}.keys() == MASKS.keys()


def test_supervision_reads_the_yolo_labels(tmp_path: Path) -> None:
    """It fills with OpenCV, which draws the line itself too, so a shape is wider by up to a pixel."""
    supervision = pytest.importorskip("supervision")
    y, x = np.mgrid[:400, :500]
    mask = np.zeros((400, 500), dtype=np.uint8)
    mask[np.hypot(y - 200, x - 150) < 140] = 1
    mask[np.hypot(y - 200, x - 150) < 60] = 0
    mask[50:350, 320:480] = 2
    write_mask(tmp_path / "masks" / "SegmentationClass" / "a.png", mask)
    write_labelmap(tmp_path / "masks" / "labelmap.txt", CLASSES)
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (500, 400)).save(tmp_path / "photos" / "a.png")
    output = convert(tmp_path, "yolo-seg", copy_images=True)
    found = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(output / "images" / "train"),
        annotations_directory_path=str(output / "labels" / "train"),
        data_yaml_path=str(output / "data.yaml"),
        force_masks=True,
    )
    assert list(found.classes) == list(CLASSES)
    ((_, _, detections),) = list(found)
    for number, region in zip(detections.class_id, detections.mask, strict=True):
        expected = mask == number + 1
        assert (region & expected).sum() / (region | expected).sum() > 0.98


def test_label_studios_own_brush() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        region = rng.random(rng.integers(1, 60, 2)) < share
        theirs = brush.decode_rle(pack_region(region)).reshape(*region.shape, 4)[..., 3] > 0
        np.testing.assert_array_equal(theirs, region)
        written = brush.encode_rle(np.repeat(np.where(region, 255, 0).astype(np.uint8).ravel(), 4))
        np.testing.assert_array_equal(unpack_region([int(value) for value in written], *region.shape), region)


def test_hugging_faces_datasets(root: Path) -> None:
    datasets = pytest.importorskip("datasets")
    output = convert(root, "hf", copy_images=True)
    rows = datasets.load_dataset("imagefolder", data_dir=str(output), cache_dir=str(root / "cache"))["train"]
    masks = sorted(np.array(row["mask"]).tobytes() for row in rows)
    assert masks == sorted(mask.tobytes() for mask in MASKS.values())
    assert {row["image"].size for row in rows} == {example.SIZE[::-1]}


def test_shapely_finds_every_polygon_valid() -> None:
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(0)
    for _ in range(200):
        region = rng.random(rng.integers(1, 14, 2)) < rng.choice([0.3, 0.5, 0.7, 0.9])
        y, x = np.mgrid[: region.shape[0], : region.shape[1]] + 0.5
        for part in polygons(region):
            polygon = shapely.Polygon(part.outline, part.holes)
            assert polygon.is_valid, shapely.is_valid_reason(polygon)
            mine = fill([part.outline, *part.holes], *region.shape)
            np.testing.assert_array_equal(shapely.contains_xy(polygon, x, y), mine)
