from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cpn_fast.data.sources.coco import CocoSource
from cpn_fast.data.sources.demo import DemoSource, generate_demo
from cpn_fast.data.sources.folder import FolderSource
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.voc import VocSource
from cpn_fast.files.errors import DataError


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "my voc: ü"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(root / "JPEGImages" / "a.jpg")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    data: dict[str, list[object]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(data))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    root.mkdir()
    Image.new("RGB", (2, 2)).save(root / "a.png")
    (root / "labels.csv").write_text("image,labels\na.png,x\n")
    return root


def test_named_and_recognised(voc: Path, coco: Path, folder: Path) -> None:
    for path, kind, cls in ((voc, "voc", VocSource), (coco, "coco", CocoSource), (folder, "folder", FolderSource)):
        for spec in (f"{kind}:{path}", str(path), path):
            source = open_source(spec)
            assert isinstance(source, cls) and source.spec == f"{kind}:{path}"
            assert type(open_source(source.spec)) is cls


def test_csv_and_plain_images_are_folders(folder: Path) -> None:
    assert open_source(folder / "labels.csv").classes == ("x",)
    (folder / "labels.csv").unlink()
    assert open_source(folder).records("all")[0].labels is None


def test_max_pixels_reaches_the_source(voc: Path) -> None:
    source = open_source(voc, max_pixels=3)
    with pytest.raises(DataError, match="2 x 2 = 4 pixels, over the limit of 3"):
        source.read(source.records("train")[0])


def test_demo(tmp_path: Path) -> None:
    root = generate_demo(tmp_path / "demo", train=3, val=2, pretrain=2, processes=1)
    source = open_source(f"demo:{root}")
    assert isinstance(source, DemoSource) and len(source.records("train")) == 3
    bare = open_source(root)  # VOC layout with its own classes.txt
    assert isinstance(bare, VocSource) and bare.classes == source.classes
    assert bare.records("val") == source.records("val")


def test_home_is_expanded(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(voc.parent))
    assert open_source(f"voc:~/{voc.name}").records("train")[0].id == "a"


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder; expected a path or one of voc:PATH, folder:"):
        open_source("nowhere")
    with pytest.raises(DataError, match="vox:data: no such file or folder; expected a path or one of voc:PATH"):
        open_source("vox:data")
    with pytest.raises(DataError, match=r"voc:nowhere: no such file or folder"):
        open_source("voc:nowhere")
    with pytest.raises(DataError, match="no path behind `coco:`"):
        open_source("coco:")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        DataError, match=r"not recognised.*looked for JPEGImages and ImageSets, .*\(voc\), .*\(coco\), a CSV"
    ):
        open_source(tmp_path)
    with pytest.raises(DataError, match="a file that is no CSV"):
        open_source(tmp_path / "notes.txt")
