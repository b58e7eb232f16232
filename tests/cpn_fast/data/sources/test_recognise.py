"""A bare path says what it is by its files; where it could be two things, both are named."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from cpn_fast.cli.main import parse
from cpn_fast.data.sources.open import KINDS, open_source
from cpn_fast.files.errors import DataError
from tests.exports import Files, write

TABLE: Files = {"labels.csv": "image,labels\na.png,cat\n", "a.png": None}
JSON: Files = {"labels.json": {"a.png": ["cat"]}, "a.png": None}
HF: Files = {"metadata.jsonl": '{"file_name": "a.png", "label": "cat"}\n', "a.png": None}
YOLO: Files = {"data.yaml": "names: [cat]\n", "a.png": None, "a.txt": "0 .5 .5 1 1\n"}
CVAT: Files = {"annotations.xml": '<annotations><image name="a.png" width="8" height="6"><tag label="cat"/></image>'
               "</annotations>", "a.png": None}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ({**JSON}, "json"), ({**TABLE}, "folder"), ({**HF}, "hf"), ({**YOLO}, "yolo"), ({**CVAT}, "cvat"),
    ],
)  # fmt: skip
def test_the_file_itself(tmp_path: Path, file: Files, kind: str) -> None:
    path = write(tmp_path, file) / next(iter(file))
    source = open_source(path)
    assert source.spec == f"{kind}:{path}" and source.classes == ("cat",)
    assert [record.labels for record in source.records("all")] == [(0,)]


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        ({**TABLE, **JSON}, ("json", "folder")), ({**TABLE, **YOLO}, ("yolo", "folder")),
        ({**HF, **YOLO}, ("yolo", "hf")),
        ({**CVAT, **JSON}, ("cvat", "json")), ({**CVAT, **TABLE}, ("cvat", "folder")),
        ({**HF, **TABLE}, ("hf", "folder")),
    ],
)  # fmt: skip
def test_two_kinds_are_an_error_that_names_both(tmp_path: Path, files: Files, kinds: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="could be of several kinds; name the one that is meant") as error:
        open_source(write(tmp_path, files))
    for kind in kinds:
        assert f"{kind}:{tmp_path} (" in str(error.value)
        assert open_source(f"{kind}:{tmp_path}").classes == ("cat",)


def test_sources_travel_to_workers(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, YOLO))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.records("all") == source.records("all") and copy.classes == source.classes


def test_coco_of_any_name_in_annotations(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}],
               "annotations": [{"id": 1, "image_id": 1, "category_id": 1}]}  # fmt: skip
    root = write(tmp_path, {"annotations/all.json": content, "images/a.png": None})
    for spec in (root, f"coco:{root}"):
        assert [record.labels for record in open_source(spec).records("all")] == [(0,)]


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    others = {"notes.json": {"version": "1.0"}, "list.json": [1, 2], "broken.json": "{", "readme.txt": "x",
              "cat/a.png": None, "dog/b.png": None}  # fmt: skip
    assert open_source(write(tmp_path, others)).spec == f"classes:{tmp_path}"


def test_two_files_of_one_kind(tmp_path: Path) -> None:
    root = write(tmp_path, {**JSON, "more.json": {"a.png": ["dog"]}})
    with pytest.raises(DataError, match=r"expected one JSON of labels in it, found labels\.json, more\.json; name it"):
        open_source(f"json:{root}")
    assert open_source(f"json:{root / 'more.json'}").classes == ("dog",)


def test_the_guide_names_every_kind(repository: Path) -> None:
    text = (repository / "docs" / "guide" / "data.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"| `{kind}:" not in text] == []
    commands = re.findall(r"`cpn (check-data [^`]+)`", text)
    assert len(commands) >= 9
    for command in commands:
        assert parse("check-data", command.split()[1:]).data.partition(":")[0] in KINDS


def test_a_file_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match="a file that is no CSV, spreadsheet, or export of a known tool"):
        open_source(tmp_path / "x.json")
