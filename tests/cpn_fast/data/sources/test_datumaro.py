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
SHAPE = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
SHAPE[1:3, 2:7] = 1


def item(name: str, *annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    image = {"path": f"{name}.png", "size": [HEIGHT, WIDTH]}
    return {"id": name, "annotations": list(annotations), "attr": {}, "image": image, **changes}


def label(number: Any) -> dict[str, Any]:
    return {"id": 0, "type": "label", "attributes": {}, "group": 0, "label_id": number}


def polygon(number: int, points: Any, order: int = 0) -> dict[str, Any]:
    return {"id": 0, "type": "polygon", "label_id": number, "points": points, "z_order": order}


def rle(number: int, code: Any = None) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(SHAPE))
    code = {"counts": packed["counts"].decode(), "size": [HEIGHT, WIDTH]} if code is None else code
    return {"id": 0, "type": "mask", "label_id": number, "rle": code, "z_order": 0}


def bbox(number: int, sides: Any) -> dict[str, Any]:
    return {"id": 0, "type": "bbox", "label_id": number, "bbox": sides, "z_order": 0}


def content(*items: Any, names: tuple[Any, ...] = ("cat", "dog")) -> dict[str, Any]:
    labels = {"labels": [{"name": name, "parent": "", "attributes": []} for name in names], "attributes": []}
    return {"info": {}, "categories": {"label": labels, "mask": {"colormap": []}}, "items": list(items)}


def one(*annotations: dict[str, Any], **changes: Any) -> Files:
    return {"annotations/train.json": content(item("a", *annotations, **changes)), "images/train/a.png": None}


SQUARE = [0, 0, 3, 0, 3, 3, 0, 3]

GOOD: dict[str, tuple[Files, dict[str, tuple[str, ...]]]] = {
    "labels": (one(label(0), label(1)), {"train/a": BOTH}),
    "polygons": (one(polygon(1, SQUARE)), {"train/a": DOG}),
    "masks": (one(rle(0)), {"train/a": CAT}),
    "boxes": (one(bbox(1, [1, 1, 2, 2])), {"train/a": DOG}),
    "ellipses": (one({"type": "ellipse", "label_id": 1, "points": [1, 1, 5, 5]}), {"train/a": DOG}),
    "points and lines": (one({"type": "points", "label_id": 1, "points": [1, 1]},
                             {"type": "polyline", "label_id": 0, "points": [1, 1, 2, 2]}), {"train/a": BOTH}),
    "captions": (one(label(0), {"type": "caption", "caption": "a cat"}), {"train/a": CAT}),
    "no label": (one({"type": "polygon", "label_id": None, "points": SQUARE}), {"train/a": ()}),
    "nothing": (one(), {"train/a": ()}),
    "images without subsets": ({"annotations/default.json": content(item("a", label(0))), "images/a.png": None},
                               {"a": CAT}),
    "by id alone": ({"annotations/default.json": content(item("sub/a", label(0), image={})), "images/sub/a.png": None},
                    {"sub/a": CAT}),
    "a path of another machine": (one(label(1), image={"path": "/home/x/a.png"}), {"train/a": DOG}),
    "background among the labels": ({"annotations/train.json": content(item("a", label(2), label(0)),
                                                                       names=("background", "cat", "dog")),
                                     "images/train/a.png": None}, {"train/a": DOG}),
    "two subsets": ({"annotations/train.json": content(item("a", label(0))), "images/train/a.png": None,
                     "annotations/validation.json": content(item("a", label(1))), "images/validation/a.png": None},
                    {"train/a": CAT, "validation/a": DOG}),
}  # fmt: skip

BAD: dict[str, tuple[Files, str]] = {
    "an image is missing": ({**one(), "annotations/train.json": content(item("b"))}, r"items\[0\]: image 'b"),
    "outside": (one(image={"path": "../../x.png"}) | {"images/train/a.png": None} | {
        "annotations/train.json": content(item("../x"))}, r"items\[0\]: image '\.\./x\.png' is outside the folder"),
    "a label beyond": (one(label(2)), r"items\[0\]\.annotations\[0\]: label_id 2; expected 0 to 1"),
    "a label as text": (one(label("cat")), "label_id 'cat'; expected 0 to 1"),
    "points of text": (one(polygon(0, ["a", 1])), r"points \['a', 1\]; expected"),
    "an odd number of points": (one(polygon(0, SQUARE[:-1])), "cannot draw it .*no list of pairs"),
    "a box of three": (one(bbox(0, [1, 2, 3])), r"bbox \[1, 2, 3\]; expected"),
    "runs of another size": (one(rle(0, {"counts": "0", "size": [2, 2]})), "cannot draw it .*its size is"),
    "runs that are none": (one(rle(0, "abc")), "rle 'abc'; expected"),
    "an image of another size": (one(polygon(0, SQUARE), image={"path": "a.png", "size": [60, 80]}),
                                 "annotated at 80 x 60 pixels"),
    "a size that is none": (one(image={"path": "a.png", "size": [0, -1]}), r"size \[0, -1\]; expected"),
    "no id": ({**one(), "annotations/train.json": content({"annotations": []})}, "no id and annotations"),
    "no labels": ({**one(), "annotations/train.json": {"categories": {}, "items": []}}, "no categories.label.labels"),
    "other labels": ({**one(), "annotations/val.json": content(names=("cat",))}, r"val\.json: its labels differ"),
    "a name twice": ({**one(), "annotations/train.json": content(names=("cat", "cat"))}, "class 'cat' comes twice"),
    "not its JSON": ({**one(), "annotations/train.json": {"images": []}}, "no 'items' and 'categories'"),
    "no JSON": ({**one(), "annotations/train.json": "{"}, "line 1: not JSON"),
    "nothing of it": ({"images/a.png": None}, r"no SUBSET\.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    files, expected = GOOD[name]
    source = opened(write(tmp_path, files))
    assert source.spec == f"datumaro:{tmp_path}"
    assert named(source) == expected


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    files, message = BAD[name]
    found = complaint(f"datumaro:{write(tmp_path, files)}")
    assert re.search(message, found), found


def test_the_ground_truth_by_z_order(tmp_path: Path) -> None:
    files = one(polygon(1, SQUARE, order=1), rle(0), bbox(0, [6, 4, 2, 2]))
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[4:, 6:] = 255
    expected[SHAPE > 0] = 1
    expected[:3, :3] = 2
    np.testing.assert_array_equal(mask_of(opened(write(tmp_path, files)), "train/a"), expected)


def test_splits_are_the_subsets(tmp_path: Path) -> None:
    assert opened(write(tmp_path, GOOD["two subsets"][0])).splits() == ("train", "val", "all")
