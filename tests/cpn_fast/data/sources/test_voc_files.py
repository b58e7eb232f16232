"""VOC's XML without VOC's folders, as LabelImg and Roboflow write it, and the lists of `ImageSets/Main`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_mask

LABELIMG = """<annotation>
\t<folder>photos</folder>
\t<filename>{name}</filename>
\t<path>C:\\\\Users\\\\me\\\\{name}</path>
\t<source><database>Unknown</database></source>
\t<size><width>8</width><height>6</height><depth>3</depth></size>
\t<segmented>0</segmented>
{objects}</annotation>
"""
OBJECT = """\t<object>
\t\t<name>{label}</name>
\t\t<pose>Unspecified</pose>
\t\t<difficult>0</difficult>
\t\t<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>5</ymax></bndbox>
\t</object>
"""


def xml(name: str, *labels: str) -> str:
    return LABELIMG.format(name=name, objects="".join(OBJECT.format(label=label) for label in labels))


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)
    return path


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def labels(source: Source, split: str = "all") -> dict[str, tuple[str, ...] | None]:
    return {
        record.id: None if record.labels is None else tuple(source.classes[n] for n in record.labels)
        for record in source.records(split)
    }


@pytest.mark.parametrize("spec", ["{}", "voc:{}"])
def test_beside_the_images_as_labelimg_leaves_them(tmp_path: Path, spec: str) -> None:
    for name, found in {"a": ("dog", "cat", "dog"), "ü b": ("cat",), "none": ()}.items():
        image(tmp_path / f"{name}.jpg")
        text(tmp_path / f"{name}.xml", xml(f"{name}.jpg", *found))
    image(tmp_path / "not yet.png")
    source = open_source(spec.format(tmp_path))
    assert source.spec == f"voc:{tmp_path}" and source.classes == ("cat", "dog")
    assert labels(source) == {"a": ("cat", "dog"), "ü b": ("cat",), "none": (), "not yet": None}
    assert source.read(source.records("all")[0], with_mask=True).mask is None
    text(tmp_path / "classes.txt", "dog\nhorse\ncat\n")
    assert open_source(tmp_path).classes == ("dog", "horse", "cat")


def test_splits_as_roboflow_exports_them(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        image(tmp_path / split / f"{name}_jpg.rf.0123.jpg")
        text(tmp_path / split / f"{name}_jpg.rf.0123.xml", xml(f"{name}_jpg.rf.0123.jpg", "dog"))
    text(tmp_path / "README.roboflow.txt", "exported")
    source = open_source(tmp_path)
    assert set(source.splits()) == {"train", "val", "test", "all"}
    assert labels(source, "val") == {"valid/b_jpg.rf.0123": ("dog",)}


@pytest.mark.parametrize(
    ("image_name", "xml_name"),
    [("JPEGImages/a.jpg", "Annotations/a.xml"), ("images/a.png", "annotations/a.xml"), ("images/x/a.jpg", "xml/a.xml"),
     ("train/images/a.jpg", "train/annotations/a.xml"), ("images/renamed.jpg", "xmls/1.xml")],
)  # fmt: skip
def test_in_a_folder_of_their_own(tmp_path: Path, image_name: str, xml_name: str) -> None:
    path = image(tmp_path / image_name)
    text(tmp_path / xml_name, xml(path.name, "dog"))
    write_mask(tmp_path / "SegmentationClass" / "other.png", np.zeros((6, 8), np.uint8))
    source = open_source(f"voc:{tmp_path}")
    assert list(labels(source).values()) == [("dog",)] and source.records("all")[0].image_path == path


def test_what_cannot_be_used_is_named_with_file_and_line(tmp_path: Path) -> None:
    for name in "abcd":
        image(tmp_path / f"{name}.jpg")
        text(tmp_path / f"{name}.xml", xml(f"{name}.jpg", "dog"))
    text(tmp_path / "b.xml", xml("b.jpg", "dog")[:-20])
    text(tmp_path / "c.xml", xml("c.jpg", "dog").replace("<name>dog</name>", "<name></name>"))
    text(tmp_path / "gone.xml", xml("gone.jpg", "dog"))
    text(
        tmp_path / "bomb.xml",
        '<!DOCTYPE a [<!ENTITY x "y">]>\n<annotation><object><name>&x;</name></object></annotation>',
    )
    text(tmp_path / "other.xml", "<playlist/>")
    scan = open_source(tmp_path).scan("all")  # type: ignore[attr-defined]
    found = {problem.path.name: str(problem) for problem in scan.problems}
    assert set(found) == {"b.xml", "c.xml", "gone.xml", "bomb.xml"}
    assert ", line " in found["b.xml"] and "not well-formed XML" in found["b.xml"]
    assert "line 8: label '' is empty" in found["c.xml"]
    assert "image 'gone.jpg' is not in" in found["gone.xml"] and "declares an entity" in found["bomb.xml"]
    assert any("other.xml: <playlist> is its root" in note for note in scan.notes)
    with pytest.raises(DataError, match="no XML below it"):
        from cpn_fast.data.sources.voc_files import read

        read(image(tmp_path / "empty" / "a.jpg").parent)


def voc(root: Path, *names: str) -> Path:
    for name in names:
        image(root / "JPEGImages" / f"{name}.jpg")
    return root


def test_labels_of_images_without_annotation_are_those_of_the_main_lists(tmp_path: Path) -> None:
    root = voc(tmp_path, "a", "b c", "d", "e")
    text(root / "ImageSets/Segmentation/train.txt", "a\nb c\nd\ne\n")
    text(root / "Annotations/d.xml", xml("d.jpg", "sheep"))
    text(root / "ImageSets/Main/dog_train.txt", "a  1\nb c -1\nd  1\n")
    text(root / "ImageSets/Main/cat_train.txt", "a  0\nb c -1\nd -1\n")
    text(root / "ImageSets/Main/train.txt", "a\nb c\n")
    source = open_source(f"voc:{root}")
    assert source.splits() == ("train",)
    assert labels(source, "train") == {"a": ("cat", "dog"), "b c": (), "d": ("sheep",), "e": None}


def test_main_gives_the_splits_where_there_are_no_others(tmp_path: Path) -> None:
    """As CVAT's and VOC 2007's detection sets come."""
    root = voc(tmp_path, "a", "b")
    text(root / "classes.txt", "red_car\ncar\n")
    text(root / "ImageSets/Main/train.txt", "a\n")
    text(root / "ImageSets/Main/my_val.txt", "b\n")
    text(root / "ImageSets/Main/car_train.txt", "a 1\n")
    text(root / "ImageSets/Main/red_car_my.txt", "b 1\n")
    source = open_source(root)
    assert source.spec == f"voc:{root}" and set(source.splits()) == {"train", "my_val"}
    assert labels(source, "train") == {"a": ("car",)} and labels(source, "my_val") == {"b": ("red_car",)}


def test_a_line_of_a_class_that_says_nothing(tmp_path: Path) -> None:
    root = voc(tmp_path, "a")
    text(root / "ImageSets/Main/train.txt", "a\n")
    text(root / "ImageSets/Main/dog_train.txt", "a 1\nb 2\n")
    with pytest.raises(DataError, match=r"dog_train\.txt, line 2: 'b 2'; expected an image's name and 1, 0"):
        open_source(root).records("train")
    text(root / "Annotations/a.xml", xml("a.jpg", "dog"))
    assert labels(open_source(root), "train") == {"a": ("dog",)}  # nobody needs the lists then
