"""Seeded mutations of every export: read to the end, or refused by a DataError of one line; nothing else comes out."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpn_fast.files.errors import DataError
from tests.cpn_fast.data.sources import (
    test_coco_export,
    test_cvat,
    test_datumaro,
    test_imagefolder,
    test_json_map,
    test_label_studio,
    test_roboflow,
    test_yolo,
)
from tests.exports import Files, opened, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNT = 60
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**70, 1.5, float("nan"), float("inf"), "", "x", "1", "\0", "\ud800", "x" * 5000,
    "../../x", "/etc/passwd", [], [[]], {}, {"a": 1}, [1, 2, 3], ["a"], "background",
    {"size": [10**9, 10**9], "counts": [1]},
)  # fmt: skip
TEXTS = ("", "-1", "1e999", "nan", "9" * 400, "\0", "é", "[]", '"', "../../x", "x" * 5000, "&a;", "<a>", ",", ";", "\n",
         "\\", "background", "&#0;", "{", ": ", "- ", "*a", "!!python/object:os.system")  # fmt: skip

CASES: dict[str, tuple[str, Files, str]] = {
    "coco": ("coco", test_coco_export.one(test_coco_export.drawn(3), test_coco_export.drawn(1, [])), "result.json"),
    "label-studio": (
        "label-studio",
        {**test_label_studio.IMAGES, "x.json": [
            test_label_studio.task("a.png", test_label_studio.polygon("cat", test_label_studio.UPPER_LEFT),
                                   test_label_studio.brush("dog"), test_label_studio.box("dog")),
        ]},
        "x.json",
    ),
    "datumaro": (
        "datumaro",
        test_datumaro.one(test_datumaro.polygon(1, test_datumaro.SQUARE), test_datumaro.rle(0),
                          test_datumaro.bbox(0, [1, 1, 2, 2])),
        "annotations/train.json",
    ),
    "json": ("json", {**test_json_map.IMAGES, "x.json": test_json_map.GOOD["a list of objects"][0]}, "x.json"),
    "roboflow": ("roboflow", test_roboflow.GOOD["COCO"][0], "train/_annotations.coco.json"),
    "roboflow table": ("roboflow", test_roboflow.GOOD["labels"][0], "train/_classes.csv"),
    "roboflow masks": ("roboflow", test_roboflow.GOOD["masks"][0], "train/_classes.csv"),
    "hf": ("hf", test_imagefolder.GOOD["objects"][0], "metadata.jsonl"),
    "hf csv": ("hf", test_imagefolder.GOOD["CSV of several"][0], "metadata.csv"),
    "yolo": ("yolo", test_yolo.GOOD["outlines"][0], "labels/train/train.txt"),
    "yolo yaml": ("yolo", test_yolo.GOOD["outlines"][0], "data.yaml"),
    "cvat": ("cvat", test_cvat.GOOD["polygons"][0], "annotations.xml"),
    "cvat mask": ("cvat", test_cvat.GOOD["a mask"][0], "annotations.xml"),
    "cvat labelmap": ("cvat", test_cvat.MASKS, "labelmap.txt"),
}  # fmt: skip


def json_mutations(content: Any, random: np.random.Generator) -> Iterator[str]:
    """One value anywhere in it is another, or its key is gone."""
    places: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((*path, key))
            walk(node[key], (*path, key))

    walk(content, ())
    for _ in range(COUNT):
        *parents, last = places[random.integers(len(places))]
        changed = copy.deepcopy(content)
        node = changed
        for key in parents:
            node = node[key]
        if random.random() < 0.15:
            del node[last]
        else:
            node[last] = VALUES[random.integers(len(VALUES))]
        yield json.dumps(changed)


def text_mutations(content: str, random: np.random.Generator) -> Iterator[str]:
    """One word of it is another text, or the end is gone."""
    words = list(re.finditer(r"[\w.]+|[^\w\s]", content))
    for _ in range(COUNT):
        word = words[random.integers(len(words))]
        if random.random() < 0.1:
            yield content[: word.start()]
        else:
            yield content[: word.start()] + TEXTS[random.integers(len(TEXTS))] + content[word.end() :]


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_a_data_error_of_one_line(tmp_path: Path, name: str) -> None:
    kind, files, target = CASES[name]
    random = np.random.default_rng(len(name))
    content = files[target]
    mutations = text_mutations(content, random) if isinstance(content, str) else json_mutations(content, random)
    root = write(tmp_path, files)
    path = root / "x.json" if target == "x.json" else root / target if target == "result.json" else root
    refused = 0
    for mutation in mutations:
        (root / target).write_bytes(mutation.encode("utf-8", "surrogatepass"))
        messages = []
        try:
            source = opened(f"{kind}:{path}")
            scan = source.scan("all")
            messages = [str(problem) for problem in scan.problems]
            for record in scan.records:
                source.read(record, with_mask=True)
        except DataError as error:
            messages.append(str(error))
        refused += bool(messages)
        for message in messages:
            assert "\n" not in message and len(message) < 6000, mutation
    assert refused > COUNT // 10
