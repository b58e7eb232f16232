from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cpn_fast.data.sources.coco import CocoSource
from cpn_fast.files.errors import DataError

# pycocotools' own arrays have not caught up with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 6, 8


def box(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    """The outline of whole pixels x0..x1-1, y0..y1-1."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(number: int, image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def instances(annotations: list[dict[str, Any]], names: tuple[str, ...] = ("1.jpg", "ü 2.jpg")) -> dict[str, Any]:
    return {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in enumerate(names, start=1)
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 17, "name": "cat"}],
        "annotations": annotations,
    }


def write(root: Path, data: Any, split: str = "val2017", folder: str | None = None) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    images = root / (folder or split)
    images.mkdir(parents=True, exist_ok=True)
    for name in ("1.jpg", "ü 2.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / name)
    return root


def drawn(root: Path) -> np.ndarray:
    source = CocoSource(root)
    mask = source.read(source.records("val2017")[0], with_mask=True).mask
    assert mask is not None and mask.dtype == np.uint8
    return mask


def test_classes_splits_and_labels(tmp_path: Path) -> None:
    root = write(tmp_path, instances([annotation(1, 1, 90, box(0, 0, 2, 2)), annotation(2, 1, 1, box(0, 0, 2, 2))]))
    write(root, instances([annotation(1, 2, 17, box(0, 0, 2, 2))]), "train2017")
    source = CocoSource(root)
    assert source.classes == ("person", "cat", "toothbrush")
    assert source.splits() == ("train2017", "val2017", "train", "val")
    assert [(r.id, r.labels) for r in source.records("val")] == [("1", (0, 2)), ("ü 2", ())]
    assert [(r.id, r.labels) for r in source.records("train2017")] == [("1", ()), ("ü 2", (1,))]
    labels = source.read(source.records("val")[0]).labels
    assert labels is not None and labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("folder", ["images", "images/val2017"])
def test_other_image_folders(tmp_path: Path, folder: str) -> None:
    assert len(CocoSource(write(tmp_path, instances([]), folder=folder)).records("val")) == 2


def test_smaller_instances_lie_on_larger_ones_and_crowds_below(tmp_path: Path) -> None:
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 4, HEIGHT * 4]}  # columns 0..3, in column order
    data = instances([
        annotation(1, 1, 17, box(3, 2, 5, 4)),
        annotation(2, 1, 1, box(2, 1, 7, 5)),
        annotation(3, 1, 90, crowd, crowd=1),
        annotation(4, 2, 90, box(0, 0, 8, 6)),
        annotation(5, 1, 90, []),
    ])  # fmt: skip
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:, :4] = 255
    expected[1:5, 2:7] = 1
    expected[2:4, 3:5] = 2
    np.testing.assert_array_equal(drawn(write(tmp_path, data)), expected)


def test_compressed_rle_and_several_polygons(tmp_path: Path) -> None:
    shape = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
    code = coco_mask.encode(np.asfortranarray(shape.astype(np.uint8)))
    rle = {"size": code["size"], "counts": code["counts"].decode()}
    np.testing.assert_array_equal(drawn(write(tmp_path, instances([annotation(1, 1, 1, rle)]))), shape.astype(np.uint8))
    parts = box(0, 0, 2, 2) + box(5, 3, 8, 6)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:2, :2] = expected[3:, 5:] = 3
    np.testing.assert_array_equal(drawn(write(tmp_path, instances([annotation(1, 1, 90, parts)]))), expected)


def test_an_image_without_annotations_is_all_background(tmp_path: Path) -> None:
    np.testing.assert_array_equal(drawn(write(tmp_path, instances([]))), np.zeros((HEIGHT, WIDTH)))


def test_source_travels_to_workers(tmp_path: Path) -> None:
    source = CocoSource(write(tmp_path, instances([annotation(1, 1, 1, box(0, 0, 2, 2))])))
    record = source.records("val")[0]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read_mask(record), source.read_mask(record))


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [HEIGHT, WIDTH + 1], "counts": [0, 54]},
        {"size": [HEIGHT, WIDTH]},
        [[1, 2]],
        "polygon",
        None,
    ],
)
def test_broken_segmentation_names_image_and_annotation(tmp_path: Path, segmentation: Any) -> None:
    root = write(tmp_path, instances([annotation(77, 1, 1, segmentation)]))
    with pytest.raises(DataError, match=r"1\.jpg: annotation 77: cannot draw its segmentation .*expected polygons"):
        drawn(root)


def test_size_that_differs_from_the_image(tmp_path: Path) -> None:
    data = instances([])
    data["images"][0]["width"] = 9
    with pytest.raises(DataError, match=r"the mask is 9 x 6 pixels, its image .*1\.jpg 8 x 6"):
        drawn(write(tmp_path, data))
    del data["images"][0]["width"]
    with pytest.raises(DataError, match="has height 6, width None; expected both in pixels"):
        drawn(write(tmp_path, data))


def test_every_problem_names_file_and_entry(tmp_path: Path) -> None:
    data = instances(
        [annotation(1, 9, 1, []), annotation(2, 1, 5, []), {"id": 3}], ("1.jpg", "gone.jpg", "../out.jpg", "1.png")
    )
    data["images"].append({"id": 1, "file_name": "ü 2.jpg"})
    data["images"].append({"id": 12})
    root = write(tmp_path, data)
    Image.new("RGB", (1, 1)).save(root / "val2017" / "1.png")
    scan = CocoSource(root).scan("val")
    expected = [
        r"annotations\[0\]: image_id 9 is not in 'images'",
        r"annotations\[1\]: category_id 5 is not in 'categories'",
        r"annotations\[2\] has no image_id and no category_id",
        r"images\[2\]: file_name '\.\./out\.jpg' is outside",
        r"images\[4\]: image id 1 comes twice",
        r"images\[5\] has no file_name",
        r"image 2 \(file_name 'gone\.jpg'\) is not in .*val2017",
        r"image 4: file_name '1\.png' gives the id '1' twice",
    ]
    problems = [str(problem) for problem in scan.problems]
    assert len(problems) == len(expected), problems
    for pattern in expected:
        pattern = r"instances_val2017\.json: " + pattern
        assert sum(bool(re.search(pattern, problem)) for problem in problems) == 1, (pattern, problems)
    assert scan.notes == (f"images in {root / 'val2017'} that instances_val2017.json leaves out: 1, e.g. ü 2.jpg",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"images": [],\n "annotations": [}', r"instances_val2017\.json, line 2: not JSON at column 18"),
        ("", "line 1: not JSON"),
        ({"images": [], "annotations": []}, "no list under the key 'categories'"),
        ([], "no list under the key 'images'"),
        ({"images": [], "annotations": [], "categories": [{"id": 1}]}, "an entry of 'categories' lacks 'name'"),
        (
            {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
            "a name comes twice in 'categories'",
        ),
        (
            {"images": [], "annotations": [], "categories": [{"id": n, "name": f"c{n}"} for n in range(1203)]},
            "1203 classes, at most 254",
        ),
    ],
)
def test_files_that_are_not_instances(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CocoSource(write(tmp_path, data)).records("val")


def test_layout_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations: no instances_SPLIT\.json; expected COCO's layout"):
        CocoSource(tmp_path)
    root = write(tmp_path / "a", instances([]))
    (root / "val2017").rename(root / "other")
    with pytest.raises(DataError, match=r"no images for it; looked for .*val2017, .*images"):
        CocoSource(root).records("val")
    write(tmp_path / "b", instances([]))
    other = instances([])
    other["categories"][0]["name"] = "brush"
    write(tmp_path / "b", other, "train2017")
    with pytest.raises(DataError, match="categories differ from those of the other splits"):
        [CocoSource(tmp_path / "b").records(split) for split in ("train", "val")]
