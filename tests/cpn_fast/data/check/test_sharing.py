from __future__ import annotations

from pathlib import Path

import numpy as np

from cpn_fast.data.check.command import check_source
from cpn_fast.data.check.sharing import leaks, pairs, sharing_warnings
from cpn_fast.data.types import Record
from tests.exports import opened, write

CLASSES = ("bird", "cat", "dog")


def record(name: str, *labels: int) -> Record:
    return Record(name, Path(f"{name}.png"), labels)


def test_pairs_by_hand() -> None:
    records = [record("a", 0, 1), record("b", 0, 1, 2), record("c", 0), record("d", 2), Record("e", Path("e"), None)]
    assert pairs(CLASSES, records) == (
        ("bird", "cat", 2, 1.0),  # both of cat's images
        ("bird", "dog", 1, 0.5),
        ("cat", "dog", 1, 0.5),
    )


def test_classes_of_few_images_and_classes_that_are_never_apart() -> None:
    records = [record(f"x{number}", 0, 1) for number in range(12)] + [record("y", 2)]
    few, together = sharing_warnings(CLASSES, records, "train")
    assert few == "classes with fewer than 10 images in split 'train': 'dog' (1); little is learned from so few"
    assert together.startswith("classes 'bird' and 'cat' are in the same 12 images of split 'train'")
    records += [record("z", 1), *(record(f"w{number}", 2) for number in range(9))]
    assert sharing_warnings(CLASSES, records, "train") == []


def test_leaks_are_by_content_and_only_between_purposes() -> None:
    splits = {
        "train": [record("a"), record("b")],
        "train2017": [record("a"), record("b")],
        "val": [record("c"), record("d")],
        "trainval": [record("a"), record("c")],
        "test": [record("e")],
        "all": [record("a"), record("c")],
    }
    digests = {Path("a.png"): b"1", Path("b.png"): b"2", Path("c.png"): b"1", Path("d.png"): b"", Path("e.png"): b"3"}
    (leak,) = leaks(splits, digests)
    assert leak.startswith("pictures both in train and in val: 1, e.g. a.png and c.png; scores on them say nothing")
    assert leaks({name: splits[name] for name in ("train", "train2017", "trainval", "test", "all")}, digests) == []


def test_a_check_says_them(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    files = {"labels.csv": "image,labels,split\na.png,cat;dog,train\nb.png,cat,val\nc.png,dog,train\n",
             "a.png": picture, "b.png": picture, "c.png": 255 - picture}  # fmt: skip
    report = check_source(opened(write(tmp_path, files)), measure=False)
    assert sum("pictures both in train and in val: 1" in line for line in report.warnings) == 1
    assert report.pairs == (("cat", "dog", 1, 0.5),)
    assert report.description.startswith("a folder of images with labels.csv (separated by commas, UTF-8")


def test_the_first_rows_as_understood(tmp_path: Path) -> None:
    rows = "z.png;dog\na.png;\nz.png;cat\nb.png;background\nc.png;cat\n"
    files = {"mine.csv": f"Filename;Class\n{rows}", "masks/z.png": np.zeros((6, 8), np.uint8)}
    root = write(tmp_path, {**files, **dict.fromkeys(("images/a.png", "images/b.png", "images/c.png", "images/z.png"))})
    report = check_source(opened(root), measure=False)
    assert [row[:3] for row in report.preview] == [
        ("mine.csv, line 2", "images/z.png", "cat, dog"),
        ("mine.csv, line 3", "images/a.png", "not labelled"),
        ("mine.csv, line 5", "images/b.png", "none of the classes"),
    ]
    assert report.preview[0][4] == "masks/z.png" and report.preview[1][3:] == ("all", "-")


def test_the_first_rows_of_an_export(tmp_path: Path) -> None:
    content = {"b.png": ["cat"], "a.png": ["dog"]}
    report = check_source(opened(write(tmp_path, {"x.json": content, "a.png": None, "b.png": None})), measure=False)
    assert [row[:3] for row in report.preview] == [("x.json", "b.png", "cat"), ("x.json", "a.png", "dog")]
    assert report.description == "x.json, a JSON of image labels"
