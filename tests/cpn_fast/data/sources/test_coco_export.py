"""COCO instances where other tools put them: `coco:FILE.json`, and one JSON beside its images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.exports import HEIGHT, WIDTH, Files, complaint, mask_of, named, opened, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAT, DOG, BOTH = ("cat",), ("dog",), ("cat", "dog")
SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]


def instances(*annotations: dict[str, Any], name: str = "a.png", **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": name, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [{"id": n, "image_id": 1, **item} for n, item in enumerate(annotations)],
        **changes,
    }


def drawn(category: Any, outline: Any = SQUARE, **changes: Any) -> dict[str, Any]:
    return {"category_id": category, "segmentation": outline, **changes}


def one(*annotations: dict[str, Any], **changes: Any) -> Files:
    return {"result.json": instances(*annotations, **changes), "a.png": None}


GOOD: dict[str, tuple[Files, dict[str, tuple[str, ...]]]] = {
    "beside its images": (one(drawn(3)), {"a": DOG}),
    "images/": ({"result.json": instances(drawn(3), name="images/a.png"), "images/a.png": None}, {"a": DOG}),
    "images/ not said": ({"result.json": instances(drawn(1)), "images/a.png": None}, {"a": CAT}),
    "backslashes": ({"result.json": instances(drawn(1), name="images\\a.png"), "images/a.png": None}, {"a": CAT}),
    "ids as text": (one(drawn("3"), {"category_id": "1", "segmentation": [], "image_id": "1"}), {"a": BOTH}),
    "two points": (one(drawn(3, [[1, 1, 4, 4]])), {"a": DOG}),
    "no annotation": (one(), {"a": ()}),
    "a box alone": (one({"category_id": 3, "bbox": [1, 1, 2, 2]}), {"a": DOG}),
    "a crowd": (one(drawn(3, {"size": [HEIGHT, WIDTH], "counts": [0, 6, 42]}, iscrowd=1)), {"a": DOG}),
    "the only image of its name": ({"result.json": instances(drawn(1), name="/gone/with/a.png"[1:]), "x/a.png": None},
                                   {"x/a": CAT}),
    "without sizes": (one(drawn(1), images=[{"id": 1, "file_name": "a.png"}]), {"a": CAT}),
    "a name that is long": (one(drawn(1), categories=[{"id": 1, "name": "x" * 100}]), {"a": ("x" * 100,)}),
}  # fmt: skip

BAD: dict[str, tuple[Files, str]] = {
    "background": (one(categories=[{"id": 1, "name": "background"}]), r"categories\[0\]: a category called background"),
    "an image is missing": (one(name="b.png"), r"result\.json: image 1: image 'b\.png' is not in"),
    "outside": (one(name="../a.png"), r"images\[0\]: file_name '\.\./a\.png' is outside the image folder"),
    "no list": (one(images={}), "no list under the key 'images'"),
    "another image": (one(drawn(1, image_id=2)), r"annotations\[0\]: image_id 2 is not in 'images'"),
    "another category": (one(drawn(2)), r"annotations\[0\]: category_id 2 is not in 'categories'"),
    "a name twice": (one(categories=[{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]), "an id or a name comes twice"),
    "another size": (one(drawn(1), images=[{"id": 1, "file_name": "a.png", "height": 60, "width": 80}]),
                     "annotated at 80 x 60 pixels"),
    "a size that is none": (one(images=[{"id": 1, "file_name": "a.png", "height": -6, "width": 8}]), "has height -6"),
    "no outline": (one(drawn(1, "abc")), "cannot draw it .*it is str"),
    "runs of another size": (one(drawn(1, {"size": [1, 1], "counts": [1]})), r"cannot draw it .*its size is \[1, 1\]"),
    "far outside": (one(drawn(1, [[0, 0, 99, 0, 99, 99]])), "cannot draw it .*a coordinate is 99"),
    "no JSON": ({"result.json": "{'images': []}", "a.png": None}, r"result\.json, line 1: not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    files, expected = GOOD[name]
    root = write(tmp_path, files)
    for spec in (f"coco:{root / 'result.json'}", str(root)):
        source = opened(spec)
        assert source.spec.startswith("coco:") and named(source) == expected


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    files, message = BAD[name]
    found = complaint(f"coco:{write(tmp_path, files) / 'result.json'}")
    assert re.search(message, found), found


def test_polygons_of_two_points_are_noted(tmp_path: Path) -> None:
    source = opened(write(tmp_path, GOOD["two points"][0]))
    assert (
        "fewer than three points, which has no area and is skipped: 1, e.g. annotation 0" in source.scan("all").notes[0]
    )


def test_the_ground_truth(tmp_path: Path) -> None:
    """As pycocotools draws it; the smaller on top, a crowd void below the others."""
    big = [[0, 0, 6, 0, 6, 5, 0, 5]]
    crowd = {"size": [HEIGHT, WIDTH], "counts": [36, 12]}  # the last two columns
    source = opened(write(tmp_path, one(drawn(3), drawn(1, big), drawn(1, crowd, iscrowd=1))))
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:, 6:] = 255
    for outline, value in ((big, 1), (SQUARE, 2)):
        expected[coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, HEIGHT, WIDTH))) > 0] = value
    np.testing.assert_array_equal(mask_of(source, "a"), expected)
