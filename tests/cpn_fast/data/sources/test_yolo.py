from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest

from tests.exports import HEIGHT, WIDTH, Files, complaint, mask_of, named, opened, write

YAML = "train: images/train\nval: images/val\nnc: 2\nnames: ['cat', 'dog']\n"
BOX = "1 0.5 0.5 0.25 0.5\n"
OUTLINE = "0 0 0 0.5 0 0.5 0.5 0 0.5\n"  # the upper left quarter
CAT, DOG = ("cat",), ("dog",)


def split(name: str, label: str = BOX) -> Files:
    return {f"images/{name}/{name}.png": None, f"labels/{name}/{name}.txt": label}


GOOD: dict[str, tuple[Files, dict[str, tuple[str, ...]]]] = {
    "boxes": ({"data.yaml": YAML, **split("train"), **split("val", "0 .5 .5 1 1\n1 .1 .1 .1 .1\n0 .2 .2 .1 .1\n")},
              {"train/train": DOG, "val/val": ("cat", "dog")}),
    "outlines": ({"data.yaml": YAML, **split("train", OUTLINE)}, {"train/train": CAT}),
    "names by number": ({"data.yaml": "train: images\nnames:\n  0: cat\n  1: dog\n", "images/a.png": None,
                         "labels/a.txt": BOX}, {"a": DOG}),
    "as Roboflow writes it": ({"data.yaml": "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [cat, dog]\n",
                               "train/images/a.png": None, "train/labels/a.txt": BOX, "valid/images/b.png": None,
                               "valid/labels/b.txt": OUTLINE}, {"train/images/a": DOG, "valid/images/b": CAT}),
    "a path of another machine": ({"data.yaml": "path: /content/set\ntrain: images/train\nnames: [cat, dog]\n",
                                   **split("train")}, {"train/train": DOG}),
    "a path within": ({"data.yaml": "path: set\ntrain: images\nnames: [cat, dog]\n", "set/images/a.png": None,
                       "set/labels/a.txt": BOX}, {"set/images/a": DOG}),
    "a list of images": ({"data.yaml": "train: train.txt\nval: val.txt\nnames: [cat, dog]\n",
                          "train.txt": "./images/a.png\n", "val.txt": "images\\b.png\n", "images/a.png": None,
                          "images/b.png": None, "labels/a.txt": BOX, "labels/b.txt": OUTLINE}, {"a": DOG, "b": CAT}),
    "classes.txt beside labels": ({"classes.txt": "cat\ndog\n", "images/a.png": None, "labels/a.txt": BOX}, {"a": DOG}),
    "as CVAT writes it": ({"obj.names": "cat\ndog\n", "obj_train_data/a.png": None, "obj_train_data/a.txt": BOX,
                           "obj_valid_data/b.png": None, "obj_valid_data/b.txt": OUTLINE},
                          {"obj_train_data/a": DOG, "obj_valid_data/b": CAT}),
    "empty and missing labels": ({"data.yaml": YAML, **split("train"), **split("val", ""),
                                  "images/val/other.png": None},
                                 {"train/train": DOG, "val/val": (), "val/other": ()}),
    "names with marks": ({"data.yaml": 'train: images\nnames: ["größer, kleiner", "b: c"]\n', "images/ü.png": None,
                          "labels/ü.txt": "\ufeff0 .5 .5 .1 .1\r\n\r\n"}, {"ü": ("größer, kleiner",)}),
    "a class called background": ({"data.yaml": "train: images\nnames: [background, dog]\n", "images/a.png": None,
                                   "labels/a.txt": "0 .5 .5 1 1\n1 .5 .5 .1 .1\n"}, {"a": DOG}),
    "several folders": ({"data.yaml": "train: [images/train, images/more]\nnames: [cat, dog]\n", **split("train"),
                         **split("more", OUTLINE)}, {"train/train": DOG, "more/more": CAT}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    files, expected = GOOD[name]
    source = opened(write(tmp_path, files))
    assert source.spec == f"yolo:{tmp_path}"
    assert named(source) == expected


ONE: Files = {"images/a.png": None, "labels/a.txt": BOX}
BAD: dict[str, tuple[Files, str]] = {
    "not YAML": ({**ONE, "data.yaml": "names: [cat\ntrain: x"}, r"data\.yaml, line 2: not YAML"),
    "no names": ({**ONE, "data.yaml": "train: images\n"}, r"data\.yaml: no 'names'"),
    "another count": ({**ONE, "data.yaml": "nc: 3\nnames: [cat, dog]\n"}, "nc is 3, but 'names' has 2"),
    "a gap": ({**ONE, "data.yaml": "names: {0: cat, 2: dog}\n"}, "without a gap"),
    "a name twice": ({**ONE, "data.yaml": "names: [cat, cat]\n"}, "class 'cat' comes twice"),
    "a number as name": ({**ONE, "data.yaml": "names: [cat, 7]\n"}, "class 1 is no text but int"),
    "outside": ({**ONE, "data.yaml": "train: images/../../x\nnames: [cat, dog]\n"}, "'train' .* is outside the folder"),
    "no labels at all": ({"data.yaml": YAML, "images/train/a.png": None}, "no label file for any of 1 images"),
    "no images": ({"data.yaml": YAML, "labels/a.txt": BOX}, "no images"),
    "a class beyond": ({"data.yaml": YAML, **split("train", "2 .5 .5 .1 .1\n")},
                       r"train\.txt, line 1: class '2'; expected 0 to 1"),
    "half a class": ({"data.yaml": YAML, **split("train", "0.5 .5 .5 .1 .1\n")}, r"line 1: class '0\.5'; expected 0"),
    "pixels": ({"data.yaml": YAML, **split("train", BOX + "1 100 50 20 20\n")}, "line 2: 100 is no share of the image"),
    "not a number": ({"data.yaml": YAML, **split("train", "dog .5 .5 .1 .1\n")}, r"line 1: 'dog \.5 .*numbers alone"),
    "NaN": ({"data.yaml": YAML, **split("train", "1 nan .5 .1 .1\n")}, "line 1: nan is no share"),
    "too few": ({"data.yaml": YAML, **split("train", "1 .5 .5\n")}, "line 1: 3 numbers; expected 5"),
    "a score": ({"data.yaml": YAML, **split("train", "1 .5 .5 .1 .1 .9\n")}, "line 1: 6 numbers; expected 5"),
    "not text": ({"data.yaml": YAML, **split("train", "")} | {"labels/train/train.txt": b"\xff\xfe\x00"},
                 r"train\.txt.*not UTF-8"),
    "nested without end": ({**ONE, "data.yaml": "names: " + "[" * 5000}, r"data\.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    files, message = BAD[name]
    assert re.search(message, complaint(f"yolo:{write(tmp_path, files)}"))


def test_splits_and_the_yaml_itself(tmp_path: Path) -> None:
    root = write(tmp_path, {"data.yaml": YAML, **split("train"), **split("val")})
    source = opened(root / "data.yaml")
    assert source.splits() == ("train", "val", "all") and source.classes == ("cat", "dog")
    assert [record.id for record in source.records("val")] == ["val/val"]
    assert opened(write(tmp_path / "cvat", GOOD["as CVAT writes it"][0])).splits() == ("train", "val", "all")


def test_outlines_are_the_ground_truth_and_boxes_void(tmp_path: Path) -> None:
    labels = {"labels/train/train.txt": OUTLINE + "1 0.75 0.75 0.5 0.5\n" + "1 0 0 .25 0 .25 .3334 0 .3334\n"}
    source = opened(write(tmp_path, {"data.yaml": YAML, **split("train"), **labels}))
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[3:, 4:] = 255
    expected[:3, :4] = 1
    expected[:2, :2] = 2  # the smaller one lies on top
    np.testing.assert_array_equal(mask_of(source, "train/train"), expected)


def test_boxes_alone_are_no_ground_truth(tmp_path: Path) -> None:
    assert mask_of(opened(write(tmp_path, {"data.yaml": YAML, **split("train")})), "train/train") is None


def test_time_grows_with_the_number_of_images(tmp_path: Path) -> None:
    """Twenty times the images take far less than 400 times the time."""
    seconds = []
    for count in (20, 400):
        root = tmp_path / str(count)
        files = {f"labels/{number}.txt": BOX for number in range(count)} | {
            "images/0.png": None,
            "classes.txt": "a\nb\n",
        }
        write(root, files)
        for number in range(count):
            (root / "images" / f"{number}.png").touch()
        start = time.process_time()
        assert len(opened(f"yolo:{root}").records("all")) == count
        seconds.append(time.process_time() - start)
    assert seconds[1] < 100 * max(seconds[0], 0.005)
