from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exports import HEIGHT, WIDTH, Files, complaint, mask_of, named, opened, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TABLE = "filename, cat, dog\na.png, 1, 0\nb.png, 1, 1\n"
CAT, DOG, BOTH = ("cat",), ("dog",), ("cat", "dog")
MASK = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
MASK[2:4, 3:6] = 2


def coco(name: str, annotations: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """As Roboflow writes it: category 0 stands for the project."""
    return {
        "info": {"description": "Exported from roboflow.com"},
        "categories": [
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "animals"},
            {"id": 2, "name": "dog", "supercategory": "animals"},
        ],
        "images": [{"id": 0, "file_name": name, "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": n, "image_id": 0, "iscrowd": 0, **item} for n, item in enumerate(annotations)],
        **changes,
    }


SQUARE = {"category_id": 2, "bbox": [3, 2, 3, 2], "segmentation": [[3, 2, 6, 2, 6, 4, 3, 4]]}

GOOD: dict[str, tuple[Files, dict[str, tuple[str, ...] | None]]] = {
    "labels": ({"train/_classes.csv": TABLE, "train/a.png": None, "train/b.png": None},
               {"train/a": CAT, "train/b": BOTH}),
    "labels of one folder": ({"_classes.csv": TABLE, "a.png": None, "b.png": None}, {"a": CAT, "b": BOTH}),
    "labels of splits": ({"train/_classes.csv": TABLE, "train/a.png": None, "train/b.png": None,
                          "valid/_classes.csv": "filename, cat, dog\nc.png, 0, 1\n", "valid/c.png": None},
                         {"train/a": CAT, "train/b": BOTH, "valid/c": DOG}),
    "one name in two splits": ({"train/_classes.csv": "filename, cat, dog\na.png, 1, 0\n", "train/a.png": None,
                                "test/_classes.csv": "filename, cat, dog\na.png, 0, 1\n", "test/a.png": None},
                               {"train/a": CAT, "test/a": DOG}),
    "none of the classes": ({"train/_classes.csv": "filename, cat, dog\na.png, 0, 0\nb.png, 1, 0\n",
                             "train/a.png": None, "train/b.png": None}, {"train/a": (), "train/b": CAT}),
    "masks": ({"train/_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n2, dog\n", "train/a.png": None,
               "train/a_mask.png": MASK}, {"train/a": DOG}),
    "masks of background": ({"train/_classes.csv": "Pixel Value, Class\n0, _background_\n1, cat\n",
                             "train/a.png": None, "train/a_mask.png": MASK * 0}, {"train/a": ()}),
    "COCO": ({"train/_annotations.coco.json": coco("a.png", [SQUARE]), "train/a.png": None}, {"train/a": DOG}),
    "COCO of splits": ({"train/_annotations.coco.json": coco("a.png", [SQUARE]), "train/a.png": None,
                        "valid/_annotations.coco.json": coco("a.png", []), "valid/a.png": None},
                       {"train/a": DOG, "valid/a": ()}),
    "COCO, boxes alone": ({"train/_annotations.coco.json": coco("a.png", [{**SQUARE, "segmentation": []}]),
                           "train/a.png": None}, {"train/a": DOG}),
    "COCO, ids as text": ({"train/_annotations.coco.json": coco("a.png", [{**SQUARE, "category_id": "1"}]),
                           "train/a.png": None}, {"train/a": CAT}),
    "YOLO": ({"data.yaml": "train: ../train/images\nnames: [cat, dog]\n", "train/images/a.png": None,
              "train/labels/a.txt": "0 .5 .5 .1 .1\n"}, {"train/images/a": CAT}),
}  # fmt: skip

BAD: dict[str, tuple[Files, str]] = {
    "an image is missing": ({"train/_classes.csv": TABLE, "train/a.png": None}, r"_classes\.csv, line 3: image 'b"),
    "outside": ({"train/_classes.csv": "filename, cat\n../../a.png, 1\nb.png, 1\n", "train/b.png": None},
                r"_classes\.csv, line 2: image '\.\./\.\./a\.png' is outside the folder"),
    "no 0 or 1": ({"train/_classes.csv": TABLE.replace("1, 0", "3, 0") + "c.png, 0, 1\n", "train/b.png": None,
                   "train/c.png": None}, r"_classes\.csv, line 2: column 'cat' holds '3'"),
    "no classes": ({"train/_classes.csv": "filename\na.png\n", "train/a.png": None}, "line 1: no column labels"),
    "too many cells": ({"train/_classes.csv": TABLE + "c.png, 1, 0, 1\n", "train/a.png": None}, "line 4: 4 cells"),
    "pixel values with a gap": ({"train/_classes.csv": "Pixel Value, Class\n0, background\n2, cat\n",
                                 "train/a.png": None}, r"_classes\.csv, line 3: pixel value '2'; expected 1"),
    "a mask is missing": ({"train/_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n2, dog\n",
                           "train/a.png": None, "train/a_mask.png": MASK, "train/b.png": None},
                          r"b\.png: no mask b_mask\.png beside it"),
    "a mask of another class": ({"train/_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n",
                                 "train/a.png": None, "train/a_mask.png": MASK}, r"a_mask\.png: mask values \[2\]"),
    "masks, other classes": ({"train/_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n", "train/a.png": None,
                              "valid/_classes.csv": "Pixel Value, Class\n0, background\n1, dog\n"},
                             "its classes differ from those of"),
    "COCO, other categories": ({"train/_annotations.coco.json": coco("a.png", []), "train/a.png": None,
                                "valid/_annotations.coco.json": coco("a.png", [], categories=[{"id": 1, "name": "x"}]),
                                "valid/a.png": None}, "its categories differ from those of"),
    "COCO, an image is missing": ({"train/_annotations.coco.json": coco("b.png", []), "train/a.png": None},
                                  r"_annotations\.coco\.json: image 0: image 'b\.png' is not in"),
    "COCO, no JSON": ({"train/_annotations.coco.json": "{", "train/a.png": None}, "line 1: not JSON"),
    "nothing of it": ({"train/a.png": None}, "expected a Roboflow export"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    files, expected = GOOD[name]
    source = opened(f"roboflow:{write(tmp_path, files)}")
    assert named(source) == expected
    assert type(opened(tmp_path)) is type(source)  # recognised by itself, as Roboflow's or YOLO


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    files, message = BAD[name]
    assert re.search(message, complaint(f"roboflow:{write(tmp_path, files)}"))


def test_splits(tmp_path: Path) -> None:
    source = opened(write(tmp_path, GOOD["labels of splits"][0]))
    assert source.spec == f"roboflow:{tmp_path}" and source.splits() == ("train", "val", "all")
    assert named(source, "val") == {"valid/c": DOG}


@pytest.mark.parametrize("name", ["masks", "COCO"])
def test_ground_truth(tmp_path: Path, name: str) -> None:
    source = opened(write(tmp_path, GOOD[name][0]))
    assert source.classes == ("cat", "dog")
    np.testing.assert_array_equal(mask_of(source, "train/a"), MASK)


def test_a_class_without_an_image_is_one_all_the_same(tmp_path: Path) -> None:
    files = {"train/_classes.csv": "filename, cow, dog\na.png, 0, 1\n", "train/a.png": None}
    assert opened(write(tmp_path, files)).classes == ("cow", "dog")
