from __future__ import annotations

import json
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cpn_fast.data.sources.coco import CocoSource
from cpn_fast.data.sources.coco_shapes import covered_pixels
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
        [[1, 2, 3]],
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
    with pytest.raises(DataError, match=r"the mask is 9 x 6 pixels by its COCO entry, its image .*1\.jpg 8 x 6"):
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
        ({"images": [], "annotations": [], "categories": [{"id": 1}]}, r"categories\[0\] has no name; add it"),
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


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", [1], r"images\[0\]: id \[1\]; expected a number"),
        ("id", {"a": 1}, r"images\[0\]: id {'a': 1}; expected a number"),
        ("id", 1.5, r"images\[0\]: id 1\.5"),
        ("id", 10**30, r"images\[0\]: id 10{30}; expected a number"),
        ("file_name", "", r"images\[0\]: file_name '' is empty"),
        ("file_name", 7, r"images\[0\]: file_name 7 is no text but int"),
        ("file_name", "x" * 5000, r"images\[0\]: file_name 'x{76}\.\.\. is of 5000 characters, longer than"),
        ("file_name", "a\0.jpg", r"images\[0\]: file_name 'a\\x00\.jpg' holds the control character"),
        ("file_name", "\ud800.jpg", r"images\[0\]: file_name '\\ud800\.jpg' holds half a surrogate pair"),
        ("file_name", "C:\\1.jpg", r"images\[0\]: file_name 'C:\\\\1\.jpg' is outside the image folder"),
        ("file_name", "..jpg", r"images\[0\]: file_name '\.\.jpg' is a suffix alone"),
    ],
)
def test_odd_image_entries_are_problems(tmp_path: Path, field: str, value: Any, message: str) -> None:
    data = instances([])
    data["images"][0][field] = value
    (problem,) = CocoSource(write(tmp_path, data)).scan("val").problems
    assert re.search(message, str(problem)), problem


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, "has no image_id and no category_id"),
        (None, "has no image_id and no category_id"),
        ({"image_id": [1], "category_id": 1}, r"image_id \[1\] is not in 'images'"),
        ({"image_id": 1, "category_id": {}}, r"category_id {} is not in 'categories'"),
        ({"image_id": 1, "category_id": 1, "iscrowd": "yes"}, "iscrowd 'yes'; expected 0 or 1"),
    ],
)
def test_odd_annotations_are_problems(tmp_path: Path, entry: Any, message: str) -> None:
    data = instances([])
    data["annotations"] = [entry]
    (problem,) = CocoSource(write(tmp_path, data)).scan("val").problems
    assert re.search(r"annotations\[0\].*" + message, str(problem)), problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [7, null, []], "annotations": [], "categories": []}', r"images\[0\] has no id and no file_name"),
        (NESTED, "lists or objects nested too deep"),
        ('{"images": ' + "9" * 5000 + "}", "an integer of thousands of digits"),
        ('{"images": [], "annotations": [], "categories": [7]}', r"categories\[0\] has no id and no name"),
        ('{"images": [], "annotations": [], "categories": [{"id": [], "name": "a"}]}', r"categories\[0\]: id \[\]"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": {}}]}', "name {} is no text but dict"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "background"}]}', "called background"),
    ],
)
def test_files_of_the_wrong_make(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CocoSource(write(tmp_path, text)).records("val")


def test_ids_as_text_and_backslashes(tmp_path: Path) -> None:
    data = instances([annotation(1, 1, 17, box(0, 0, 2, 2))])
    data["images"][0] |= {"id": "1", "file_name": ".\\1.jpg"}
    data["categories"][2]["id"] = "17"
    source = CocoSource(write(tmp_path, data))
    assert source.classes == ("person", "cat", "toothbrush")
    assert [(r.id, r.labels) for r in source.records("val")] == [("1", (1,)), ("ü 2", ())]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"height": 10**9, "width": 10**9}, "the mask is 1000000000 x 1000000000 pixels by its COCO entry"),
        ({"height": 60000, "width": 60000}, "the mask is 60000 x 60000 pixels by its COCO entry"),
        ({"height": float("nan")}, "height nan, width 8; expected both in pixels"),
        ({"height": float("inf")}, "height inf"),
        ({"height": 10**30}, "height 10{30}"),
        ({"height": True}, "height True"),
        ({"height": [6]}, r"height \[6\]"),
        ({"height": 6.5}, r"height 6\.5"),
    ],
)
def test_size_is_compared_before_anything_is_drawn(tmp_path: Path, changed: Any, message: str) -> None:
    data = instances([annotation(1, 1, 1, box(0, 0, 2, 2))])
    data["images"][0] |= changed
    root = write(tmp_path, data)
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        drawn(root)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1e9, 0, 1e9, 1e9]], r"a coordinate is 1000000000\.0, outside of -8\.\.16"),
        ([[0, 0, 5, 0, 5, float("nan")]], "a coordinate is nan"),
        ([[0, 0, 5, 0, 5, float("-inf")]], "a coordinate is -inf"),
        ([[0, 0, 5, 0, 5, 2**70]], f"a coordinate is {2**70}"),
        ([[0, 0, 5, 0, 5, True]], "a coordinate is True"),
        ([[0, 0, 5, 0, 5, "5"]], "a coordinate is 5"),
        ([[0, 0, 5, 0, 5, [5]]], r"a coordinate is \[5\]"),
        ([[0, 0, 5, 0, 5, 5, 1]], "no list of pairs"),
        ([5], "no list of pairs"),
        ([[[0, 0], [5, 0], [5, 5]]], "no list of pairs"),
        ([[0, 0, 16, 12] * 300_000], "the outline of a polygon is 9720000 pixels long"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**9, 1]}, "a run is no number of pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}, "a run is no number of pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [1.5, 46.5]}, "a run is no number of pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [47]}, "its runs add up to 47 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, "its runs add up to 0 pixels"),
        ({"size": [10**9, 10**9], "counts": "0"}, "its size is"),
        ({"size": "large", "counts": "0"}, "its size is large"),
        ({"size": [HEIGHT, WIDTH], "counts": "garbage"}, "its runs add up|no compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x00"}, "no compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "ü"}, "no compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "neither a list nor a string"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 40 + "0"}, "a number that is too large"),
        ({"size": [HEIGHT, WIDTH], "counts": "ooo"}, "no compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": {"a": 1}}, "neither a list nor a string"),
    ],
)
def test_numbers_are_checked_before_a_library_sees_them(tmp_path: Path, segmentation: Any, message: str) -> None:
    root = write(tmp_path, instances([annotation(77, 1, 1, segmentation)]))
    with pytest.raises(DataError, match=rf"1\.jpg: annotation 77: cannot draw its segmentation \(.*{message}"):
        drawn(root)


def test_polygons_without_area_are_skipped_with_a_note(tmp_path: Path) -> None:
    line, nothing = [10.5 / 4, 12.0 / 4, 30.5 / 4, 12.0 / 4], []
    data = instances([annotation(5, 1, 1, [line, *box(1, 1, 3, 3)]), annotation(6, 1, 17, [nothing])])
    root = write(tmp_path, data)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[1:3, 1:3] = 1
    np.testing.assert_array_equal(drawn(root), expected)
    scan = CocoSource(root).scan("val")
    assert not scan.problems and scan.records[0].labels == (0, 1)
    assert re.search(
        r"fewer than three points, which has no area and is skipped: 2, e\.g\. annotation 5$", scan.notes[0]
    )


def test_pixels_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        shape = rng.random((height, width)) < rng.random()
        code = coco_mask.encode(np.asfortranarray(shape.astype(np.uint8)))
        rle = {"size": [height, width], "counts": code["counts"].decode()}
        np.testing.assert_array_equal(covered_pixels(rle, height, width), shape)
        polygons = [(rng.random(2 * int(rng.integers(3, 9))) * 60 - 15).clip(-height, None).tolist() for _ in range(2)]
        polygons = [[float(np.clip(v, -(width, height)[i % 2], 2 * (width, height)[i % 2])) for i, v in enumerate(p)]
                    for p in polygons]  # fmt: skip
        merged = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        np.testing.assert_array_equal(covered_pixels(polygons, height, width), merged.astype(bool))


def test_crowd_as_compressed_runs_of_a_large_image() -> None:
    shape = np.zeros((3000, 4000), dtype=np.uint8)
    shape[100:2500, 1000:3000] = 1
    shape[::97] ^= 1
    code = coco_mask.encode(np.asfortranarray(shape))
    rle = {"size": [3000, 4000], "counts": code["counts"].decode()}
    np.testing.assert_array_equal(covered_pixels(rle, 3000, 4000), shape.astype(bool))
