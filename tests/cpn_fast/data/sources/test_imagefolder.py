from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exports import HEIGHT, WIDTH, Files, complaint, mask_of, named, opened, write

CAT, DOG, BOTH = ("cat",), ("dog",), ("cat", "dog")


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def one(**values: Any) -> Files:
    return {"metadata.jsonl": lines({"file_name": "a.png", **values}), "a.png": None}


GOOD: dict[str, tuple[Files, dict[str, tuple[str, ...] | None]]] = {
    "label": (one(label="cat"), {"a": CAT}),
    "labels": (one(labels=["dog", "cat"]), {"a": BOTH}),
    "objects": (one(objects={"bbox": [[1, 1, 2, 2], [0, 0, 1, 1]], "categories": ["dog", "cat"]}), {"a": BOTH}),
    "numbers with a list": ({**one(label=1), "classes.txt": "cat\ndog\n"}, {"a": DOG}),
    "objects with a list": ({**one(objects={"bbox": [[1, 1, 2, 2]], "categories": [0]}), "classes.txt": "cat\ndog\n"},
                            {"a": CAT}),
    "numbers without one": (one(label=7), {"a": ("7",)}),
    "CSV": ({"metadata.csv": "file_name,label\na.png,cat\nsub/b.png,dog\n", "a.png": None, "sub/b.png": None},
            {"a": CAT, "sub/b": DOG}),
    "CSV of several": ({"metadata.csv": "file_name,labels\na.png,cat;dog\n", "a.png": None}, {"a": BOTH}),
    "a file per split": ({"train/metadata.jsonl": lines({"file_name": "a.png", "label": "cat"}), "train/a.png": None,
                          "test/metadata.jsonl": lines({"file_name": "a.png", "label": "dog"}), "test/a.png": None},
                         {"train/a": CAT, "test/a": DOG}),
    "in data/": ({"data/train/metadata.csv": "file_name,label\na.png,cat\n", "data/train/a.png": None},
                 {"data/train/a": CAT}),
    "one file for the splits": ({"metadata.jsonl": lines({"file_name": "train/a.png", "label": "cat"},
                                                         {"file_name": "validation/b.png", "label": "dog"}),
                                 "train/a.png": None, "validation/b.png": None},
                                {"train/a": CAT, "validation/b": DOG}),
    "not labelled": ({"metadata.jsonl": lines({"file_name": "a.png", "label": None},
                                              {"file_name": "b.png", "label": []}),
                      "a.png": None, "b.png": None}, {"a": None, "b": ()}),
    "other columns": (one(label="cat", text="a caption", width=3), {"a": CAT}),
}  # fmt: skip

BAD: dict[str, tuple[Files, str]] = {
    "an image is missing": ({**one(label="cat"), "metadata.jsonl": lines({"file_name": "b.png", "label": "cat"})},
                            r"metadata\.jsonl, line 1: image 'b\.png' is not in"),
    "outside": ({"metadata.jsonl": lines({"file_name": "../a.png", "label": "cat"}), "b.png": None},
                "line 1: image '../a.png' is outside"),
    "no name": ({"metadata.jsonl": lines({"label": "cat"}), "a.png": None}, "line 1: no file_name among 'label'"),
    "no label": (one(text="a caption"), "line 1: no label, labels or objects among 'file_name, text'"),
    "no JSON": ({"metadata.jsonl": '{"file_name": "a.png"\n', "a.png": None}, "line 1: .* is no JSON object"),
    "a list": ({"metadata.jsonl": '["a.png", "cat"]\n', "a.png": None}, "line 1: .* is no JSON object"),
    "a number beyond the list": ({**one(label=2), "classes.txt": "cat\ndog\n"}, "line 1: label holds 2; .* or 0 to 1"),
    "a fraction": (one(label=0.5), r"line 1: label holds 0\.5; expected names"),
    "objects of two lengths": (one(objects={"bbox": [[1, 1, 2, 2]], "categories": []}), "of one length"),
    "a box of three": (one(objects={"bbox": [[1, 1, 2]], "categories": ["cat"]}), r"objects: 'cat' at \[1, 1, 2\]"),
    "twice": ({"metadata.jsonl": lines({"file_name": "a.png", "label": "cat"},
                                       {"file_name": "./a.png", "label": "dog"}),
               "a.png": None}, "image 'a' comes twice"),
    "CSV of too many cells": ({"metadata.csv": "file_name,label\na.png,cat,dog\n", "a.png": None}, "line 2: 3 cells"),
    "an unknown class": ({**one(label="cow"), "classes.txt": "cat\ndog\n"}, "line 1: unknown class 'cow'"),
    "no metadata": ({"a.png": None}, r"no metadata\.jsonl or metadata\.csv"),
    "a mask is missing": (one(label="cat", mask_file_name="m.png"), "line 1: mask_file_name: image 'm.png' is not in"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    files, expected = GOOD[name]
    source = opened(write(tmp_path, files))
    assert source.spec == f"hf:{tmp_path}"
    assert named(source) == expected


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    files, message = BAD[name]
    assert re.search(message, complaint(f"hf:{write(tmp_path, files)}"))


def test_splits_and_masks(tmp_path: Path) -> None:
    mask = np.full((HEIGHT, WIDTH), 1, dtype=np.uint8)
    rows = lines({"file_name": "a.png", "label": "cat", "mask_file_name": "a_mask.png"})
    files = {"train/metadata.jsonl": rows, "train/a.png": None, "train/a_mask.png": mask,
             "validation/metadata.csv": "file_name,label\nb.png,dog\n", "validation/b.png": None}  # fmt: skip
    source = opened(write(tmp_path, files))
    assert source.splits() == ("train", "val", "all")
    assert named(source) == {"train/a": CAT, "validation/b": DOG}
    np.testing.assert_array_equal(mask_of(source, "train/a"), mask)
