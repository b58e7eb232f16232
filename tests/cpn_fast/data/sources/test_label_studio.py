from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpn_fast.data.sources.regions import brush_values
from tests.exports import HEIGHT, WIDTH, Files, complaint, mask_of, named, opened, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAT, DOG, BOTH = ("cat",), ("dog",), ("cat", "dog")
SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}

BRUSH = [0, 0, 0, 192, 57, 27, 254, 39, 0, 191, 255, 124, 2, 255, 254, 39, 0, 143, 255, 29, 128, 0]
"""What `mask2rle` of label-studio-sdk 2.1.2 gives for `PAINTED`."""
PAINTED = np.zeros((HEIGHT, WIDTH), dtype=bool)
PAINTED[1:3, 2:6] = PAINTED[4, 0] = True


def choices(*names: str) -> dict[str, Any]:
    return {"from_name": "c", "to_name": "image", "type": "choices", "value": {"choices": list(names)}, **SIZE}


def box(name: str, **changes: Any) -> dict[str, Any]:
    value = {"x": 50, "y": 50, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": [name], **changes}
    return {"type": "rectanglelabels", "value": value, **SIZE}


def polygon(name: str, points: Any) -> dict[str, Any]:
    return {"type": "polygonlabels", "value": {"points": points, "polygonlabels": [name]}, **SIZE}


def brush(name: str, code: Any = BRUSH, **changes: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": code, "brushlabels": [name]}
    return {"type": "brushlabels", "value": value, **SIZE, **changes}


def task(image: str, *results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"image": image}, "annotations": [{"id": 1, "result": list(results)}], **changes}


IMAGES: Files = {"a.png": None, "sub/b.png": None}
UPPER_LEFT = [[0, 0], [50, 0], [50, 50], [0, 50]]

GOOD: dict[str, tuple[Any, dict[str, tuple[str, ...] | None]]] = {
    "choices": ([task("a.png", choices("cat", "dog"))], {"a": BOTH}),
    "an upload": ([task("/data/upload/3/0a1b2c3d-a.png", choices("cat"))], {"a": CAT}),
    "local files": ([task("/data/local-files/?d=sub/b.png", choices("dog"))], {"sub/b": DOG}),
    "an address": ([task("s3://bucket/some/where/a.png", choices("dog"))], {"a": DOG}),
    "an escaped address": ([task("https://example.org/x/%61.png?token=1", choices("dog"))], {"a": DOG}),
    "boxes": ([task("a.png", box("dog"), box("cat"))], {"a": BOTH}),
    "polygons": ([task("a.png", polygon("cat", UPPER_LEFT))], {"a": CAT}),
    "a brush": ([task("a.png", brush("dog"))], {"a": DOG}),
    "two names of a region": ([task("a.png", box("dog", rectanglelabels=["dog", "cat"]))], {"a": BOTH}),
    "nothing found": ([task("a.png"), task("sub/b.png", choices("cat"))], {"a": (), "sub/b": CAT}),
    "not annotated": ([task("a.png", annotations=[]), task("sub/b.png", choices("cat"))], {"a": None, "sub/b": CAT}),
    "cancelled": ([task("a.png", annotations=[{"was_cancelled": True, "result": [choices("cat")]}])], {"a": None}),
    "the last annotation": ([task("a.png", annotations=[{"result": [choices("cat")]}, {"result": [choices("dog")]}])],
                            {"a": DOG}),
    "the ground truth": ([task("a.png", annotations=[{"result": [choices("cat")], "ground_truth": True},
                                                     {"result": [choices("dog")]}])], {"a": CAT}),
    "another key": ([{"data": {"photo": "a.png"}, "annotations": [{"result": [choices("cat")]}]}], {"a": CAT}),
    "relations": ([task("a.png", choices("cat"), {"type": "relation", "from_id": "x", "to_id": "y"})], {"a": CAT}),
    "JSON-MIN": ([{"image": "/data/upload/1/0a1b2c3d-a.png", "id": 1, "choice": "cat", "annotator": 1,
                   "annotation_id": 2}], {"a": CAT}),
    "JSON-MIN of several": ([{"image": "a.png", "choice": {"choices": ["cat", "dog"]}, "annotator": 1,
                              "annotation_id": 2}], {"a": BOTH}),
    "JSON-MIN of boxes": ([{"image": "a.png", "label": [{"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 0,
                            "rectanglelabels": ["dog"], **SIZE}], "annotator": 1, "annotation_id": 2}], {"a": DOG}),
}  # fmt: skip

BAD: dict[str, tuple[Any, str]] = {
    "an image is missing": ([task("c.png", choices("cat"))], r"export\.json: task 7: image 'c\.png' is not in"),
    "outside": ([task("../../a.png", choices("cat"))], r"image '\.\./\.\./a\.png' is outside the folder"),
    "no image": ([{"id": 7, "data": {"text": 3}, "annotations": []}], "task 7: no image in its data"),
    "a name that is a number": ([task("a.png", box("x", rectanglelabels=[3]))], r"rectanglelabels \[3\]; expected"),
    "a box without width": ([task("a.png", box("cat", width=None))], "result 0: a rectangle without x, y, width"),
    "points that are none": ([task("a.png", polygon("cat", [[1, 2, 3]]))], r"points \[\[1, 2, 3\]\]; expected"),
    "points far outside": ([task("a.png", polygon("cat", [[0, 0], [900, 0], [0, 9]]))], "cannot draw it .* coordinate"),
    "a brush cut off": ([task("a.png", brush("cat", BRUSH[:-6]))], r"task 7, result 0 of .*its run lengths"),
    "a brush of another size": ([task("a.png", brush("cat", original_width=9))], "it was painted on 9 x 6 pixels"),
    "a brush without a size": ([task("a.png", brush("cat", original_width=None))], "original_width None"),
    "a brush of no bytes": ([task("a.png", brush("cat", [300]))], "rle is no list of bytes"),
    "a brush that claims much": ([task("a.png", brush("cat", [255] * 40))], "its run lengths are of 4294967295 values"),
    "an image twice": ([task("a.png", choices("cat")), task("./a.png", choices("dog"))], "image 'a' comes twice"),
    "no tasks": ([], "list without tasks"),
    "an object": ({"tasks": []}, "dict without tasks"),
    "not JSON": (b"[{", "line 1: not JSON"),
    "a control character": ([task("a.png", choices("c\x00t"))], r"label 'c\\x00t' holds the control character"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    content, expected = GOOD[name]
    source = opened(write(tmp_path, {**IMAGES, "export.json": content}))
    assert source.spec == f"label-studio:{tmp_path}"
    assert named(source) == expected


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    write(tmp_path, {**IMAGES, "export.json": content})
    found = complaint(f"label-studio:{tmp_path / 'export.json'}")
    assert re.search(message, found), found


def test_the_brush_as_the_tool_packs_it(tmp_path: Path) -> None:
    source = opened(write(tmp_path, {**IMAGES, "export.json": [task("a.png", brush("dog"), choices("dog"))]}))
    np.testing.assert_array_equal(mask_of(source, "a"), PAINTED.astype(np.uint8))


def test_runs_of_single_values_and_of_repeated_ones() -> None:
    """By hand: 6 values of 8 bits, lengths of 1, 2, 3, 4 bits; three single ones, then one three times."""
    head = f"{6:032b}" + f"{7:05b}" + "".join(f"{width:04b}" for width in range(4))
    single = "0" + "01" + f"{2:02b}" + "".join(f"{value:08b}" for value in (1, 200, 255))
    repeated = "1" + "10" + f"{2:03b}" + f"{9:08b}"
    bits = head + single + repeated
    bits += "0" * (-len(bits) % 8)
    code = bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8))
    assert brush_values(code, 6).tolist() == [1, 200, 255, 9, 9, 9]


def test_later_shapes_lie_on_top_and_boxes_are_void(tmp_path: Path) -> None:
    tasks = [task("a.png", polygon("dog", UPPER_LEFT), box("cat"), brush("cat"))]
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[3:6, 4:6] = 255
    expected[:3, :4] = 2
    expected[PAINTED] = 1
    np.testing.assert_array_equal(mask_of(opened(write(tmp_path, {**IMAGES, "x.json": tasks})), "a"), expected)


def test_several_annotations_are_noted(tmp_path: Path) -> None:
    source = opened(write(tmp_path, {**IMAGES, "x.json": GOOD["the last annotation"][0]}))
    (note,) = source.scan("all").notes
    assert "of which the last one (or the ground truth) counts: 1, e.g. task 7" in note
