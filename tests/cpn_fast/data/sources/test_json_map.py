from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exports import HEIGHT, WIDTH, complaint, mask_of, named, opened, write

IMAGES = {"a.png": None, "sub/b.png": None, "c.png": None}
CAT, DOG, BOTH = ("cat",), ("dog",), ("cat", "dog")

GOOD: dict[str, tuple[Any, dict[str, tuple[str, ...] | None]]] = {
    "lists": ({"a.png": ["dog", "cat"], "sub/b.png": ["dog"]}, {"a": BOTH, "sub/b": DOG}),
    "one name": ({"a.png": "cat", "c.png": "dog"}, {"a": CAT, "c": DOG}),
    "none of the classes": ({"a.png": [], "c.png": ["background"], "sub/b.png": ["cat"]},
                            {"a": (), "c": (), "sub/b": CAT}),
    "not labelled": ({"a.png": ["cat"], "c.png": None}, {"a": CAT, "c": None}),
    "names alone": ({"a.png": ["cat"], "b.png": ["dog"]}, {"a": CAT, "sub/b": DOG}),
    "backslashes": ({"sub\\b.png": ["cat"], ".\\a.png": ["dog"]}, {"sub/b": CAT, "a": DOG}),
    "a list of objects": ([{"image": "a.png", "labels": ["cat", "dog"]}, {"image": "c.png", "labels": "dog"}],
                          {"a": BOTH, "c": DOG}),
    "other keys": ([{"filename": "a.png", "class": "cat"}], {"a": CAT}),
    "a label twice": ({"a.png": ["cat", "cat"]}, {"a": CAT}),
    "composed names": ({"a.png": ["hu\u0308ndin"], "c.png": ["h\u00fcndin"]}, {"a": ("hündin",), "c": ("hündin",)}),
    "without a suffix": ([{"image": "a", "labels": ["cat"]}], {"a": CAT}),
    "commas stay": ({"a.png": ["Paris, Texas"]}, {"a": ("Paris, Texas",)}),
}  # fmt: skip

BAD: dict[str, tuple[Any, str]] = {
    "no such image": ({"a.png": ["cat"], "d.png": ["cat"]}, r"labels\.json: entry 'd\.png': image 'd\.png' is not in"),
    "outside": ({"../a.png": ["cat"]}, "entry '../a.png': image '../a.png' is outside the folder"),
    "absolute": ({"/etc/a.png": ["cat"]}, "image '/etc/a.png' is outside the folder"),
    "numbers": ({"a.png": ["cat"], "c.png": [3]}, r"entry 'c\.png': labels \[3\]; expected a list of names"),
    "an object": ({"a.png": {"cat": 1}}, r"labels \{'cat': 1\}; expected a list of names"),
    "twice": ([{"image": "a.png", "labels": ["cat"]}, {"image": "./a.png", "labels": ["dog"]}], "'a' comes twice"),
    "a key missing": ([{"image": "a.png", "labels": ["cat"]}, {"image": "c.png"}], r"\[1\]: no image and labels in it"),
    "an empty name": ({"a.png": ["cat", " "]}, r"entry 'a\.png': label ' ' is empty"),
    "a long name": ({"a.png": ["x" * 200]}, "is of 200 characters"),
    "a control character": ({"a.png": ["c\x07t"]}, r"holds the control character '\\x07'"),
    "nothing": ({}, "nothing in it; expected labels as JSON"),
    "a text": ("cat", "str; expected labels as JSON"),
    "not JSON": (b'{"a.png": [cat]}', r"labels\.json, line 1: not JSON at column"),
    "a split": ([{"image": "a.png", "labels": ["cat"], "split": ""}], r"\[0\]: split '' is empty"),
    "many classes": ({"a.png": [f"class {number}" for number in range(255)]}, "255 classes, at most 254 fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    content, expected = GOOD[name]
    source = opened(f"json:{write(tmp_path, {**IMAGES, 'labels.json': content})}")
    assert named(source) == expected


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    content = f'"{content}"' if isinstance(content, str) else content
    write(tmp_path, {**IMAGES, "labels.json": content})
    assert re.search(message, complaint(f"json:{tmp_path / 'labels.json'}"))


def test_recognised_with_splits_and_masks(tmp_path: Path) -> None:
    mask = np.full((HEIGHT, WIDTH), 2, dtype=np.uint8)
    content = [{"image": "a.png", "labels": ["cat", "dog"], "split": "train"},
               {"image": "c.png", "labels": [], "split": "val"}]  # fmt: skip
    source = opened(write(tmp_path, {**IMAGES, "masks/a.png": mask, "mine.json": content}))
    assert source.spec == f"json:{tmp_path}" and source.splits() == ("train", "val", "all")
    np.testing.assert_array_equal(mask_of(source, "a"), mask)
    assert mask_of(source, "c") is None
