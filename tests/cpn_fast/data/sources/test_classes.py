from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.data.sources.classes import ClassFolderSource, class_folders
from cpn_fast.data.sources.folder import FolderSource, hash_split
from cpn_fast.data.sources.open import open_source, open_source_for
from cpn_fast.data.sources.unlabelled import what_was_seen
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_mask
from cpn_fast.training.run import labelled_records


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(root / name)
    return root


def labels(source: ClassFolderSource, split: str) -> dict[str, tuple[int, ...] | None]:
    return {record.id: record.labels for record in source.records(split)}


def test_a_folder_per_class(tmp_path: Path) -> None:
    root = images(tmp_path, "dog/IMG_1.jpg", "cat/IMG_1.jpg", "cat/more/2.PNG", "background/3.jpg", ".hidden/4.jpg")
    source = open_source(root)
    assert isinstance(source, ClassFolderSource) and source.spec == f"classes:{root}"
    assert source.classes == ("cat", "dog") and source.splits()[-1] == "all"
    assert labels(source, "all") == {
        "background/3": (), "cat/IMG_1": (0,), "cat/more/2": (0,), "dog/IMG_1": (1,),
    }  # fmt: skip
    for name in ("train", "val"):
        expected = [key for key in labels(source, "all") if hash_split(key) == name]
        assert (name in source.splits()) == bool(expected)
        assert not expected or list(labels(source, name)) == expected
    assert source.read(source.records("all")[1]).image.shape == (4, 6, 3)


def test_splits_of_class_folders(tmp_path: Path) -> None:
    root = images(tmp_path, "Train/dog/1.jpg", "Train/train/1.jpg", "valid/dog/1.jpg", "test/deep/er/1.jpg")
    source = open_source(root)
    assert isinstance(source, ClassFolderSource)
    assert source.classes == ("deep", "dog", "train") and source.splits() == ("test", "train", "val", "all")
    assert labels(source, "train") == {"Train/dog/1": (1,), "Train/train/1": (2,)}
    assert labels(source, "val") == {"valid/dog/1": (1,)} and labels(source, "test") == {"test/deep/er/1": (0,)}


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    source = open_source(images(tmp_path, "train/1.jpg", "val/1.jpg", "bus/1.jpg"))
    assert source.classes == ("bus", "train", "val") and len(source.records("all")) == 3
    assert open_source(images(tmp_path / "b", "train/1.jpg", "test/1.jpg")).classes == ("test", "train")


@pytest.mark.parametrize(
    "names",
    [
        ("1.jpg", "dog/1.jpg", "cat/1.jpg"),
        ("dog/1.jpg",),
        ("images/1.jpg", "masks/1.png"),
        ("train/images/1.jpg", "train/masks/1.png"),
        ("train/dog/1.jpg", "train/1.jpg", "val/dog/1.jpg"),
    ],
)
def test_other_folders_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert class_folders(images(tmp_path, *names)) == ()
    assert isinstance(open_source(tmp_path), FolderSource)


def test_a_csv_goes_before_folders_and_the_kind_before_both(tmp_path: Path) -> None:
    images(tmp_path, "dog/1.jpg", "cat/1.jpg")
    (tmp_path / "labels.csv").write_text("image,labels\ndog/1.jpg,wolf\n")
    assert open_source(tmp_path).classes == ("wolf",)
    assert open_source(f"classes:{tmp_path}").classes == ("cat", "dog")
    assert open_source(f"folder:{tmp_path}").classes == ("wolf",)


def test_classes_txt_and_masks(tmp_path: Path) -> None:
    images(tmp_path, "dog/1.jpg", "cat/1.jpg", "cow/1.jpg")
    (tmp_path / "classes.txt").write_text("dog\ncat\nhorse\n")
    write_mask(tmp_path / "masks" / "dog" / "1.png", np.zeros((4, 6), np.uint8))
    source = open_source(tmp_path)  # the masks' folder is no class
    assert isinstance(source, ClassFolderSource) and source.classes == ("dog", "cat", "horse")
    (problem,) = source.scan("all").problems
    assert re.search(r"cow/1\.jpg: unknown class 'cow'; known are dog, cat, horse", str(problem))
    assert {record.id: bool(record.mask_path) for record in source.scan("all").records} == {
        "cat/1": False, "dog/1": True,
    }  # fmt: skip


def test_what_is_no_class_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/1\.jpg lies in no class's folder; expected CLASS/IMAGE"):
        ClassFolderSource(images(tmp_path, "1.jpg", "a/1.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        ClassFolderSource(tmp_path / "empty")
    images(tmp_path / "long", f"{'x' * 150}/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match=r"the folder 'x{76}\.\.\. is of 150 characters"):
        ClassFolderSource(tmp_path / "long")


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ({"dog/1.jpg": None, "cat/1.jpg": None}, r"2 folders of images \(cat, dog\): did you mean `classes:{root}`\?"),
        ({"dog/1.jpg": None}, r"one folder of images \(dog\): if that is a class, did you mean `classes:{root}`\?"),
        ({"images/1.jpg": None, "images/labels.csv": "image,labels\n1.jpg,a\n"},
         r"{root}/images/labels\.csv: move it to {root}, or give folder:{root}/images"),
        ({"images/1.jpg": None, "labels/1.txt": "0 1 1 1 1", "data.yaml": ""},
         r"data\.yaml \(YOLO\), read by yolo:{root}; 1 files like"),
        ({"1.jpg": None, "sub/_classes.csv": "filename, a\n1.jpg, 1\n"}, r"_classes\.csv \(Roboflow, a column per"),
        ({"1.jpg": None, "annotations.xml": "<annotations/>"}, r"annotations\.xml \(CVAT\)"),
        ({"1.jpg": None, "labels.json": "{}"}, r"labels\.json \(JSON\)"),
        ({"1.jpg": None, "sub/labels.xlsx": "PK"}, r"labels\.xlsx: move it to {root}, or give folder:{root}/sub"),
        ({"1.jpg": None, "labels.csv": "image,labels\n1.jpg,\n"}, r"labels\.csv, whose labels are empty"),
    ],
)  # fmt: skip
def test_no_labels_at_all_names_what_was_seen(tmp_path: Path, files: dict[str, str | None], seen: str) -> None:
    for name, text in files.items():
        if text is None:
            images(tmp_path, name)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
    source = open_source(f"folder:{tmp_path}")
    pattern = seen.replace("{root}", re.escape(str(tmp_path)))
    with pytest.raises(
        DataError, match=rf"split 'all': folder:.*: none of \d images has labels; seen there: .*{pattern}"
    ):
        labelled_records(source, "all")
    with pytest.raises(DataError, match=rf"^folder:.*: none of \d images has labels; seen there: .*{pattern}"):
        labelled_records(source, "train")  # the split that a training takes, which is not there without labels


def test_nothing_seen_is_nothing_said(tmp_path: Path) -> None:
    assert what_was_seen(images(tmp_path, "1.jpg")) == ""


def test_folders_that_a_network_knows_nothing_of_are_no_classes(tmp_path: Path) -> None:
    images(tmp_path, "2021/1.jpg", "2022/1.jpg")
    assert isinstance(open_source_for(tmp_path, ["dog", "cat"]), FolderSource)
    assert isinstance(open_source_for(tmp_path, ["2021", "cat"]), ClassFolderSource)
    assert isinstance(open_source_for(f"classes:{tmp_path}", ["dog", "cat"]), ClassFolderSource)
