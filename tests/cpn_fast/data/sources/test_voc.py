from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.data.sources.voc import VOC_CLASSES, VocSource
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_mask

COCO_MINI = Path(os.environ.get("CPN_TEST_DATA", "no test data")) / "coco_mini"


def annotation(*names: str) -> str:
    objects = "".join(
        f"<object>\n  <name>{name}</name>\n  <part><name>head</name></part>\n</object>\n" for name in names
    )
    return f"<annotation>\n<filename>x.jpg</filename>\n{objects}</annotation>\n"


class VocFolder:
    """Writes a small VOC layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)

    def image(self, name: str, *classes: str, suffix: str = ".jpg", xml: bool = True) -> None:
        Image.new("RGB", (6, 4)).save(self.root / "JPEGImages" / f"{name}{suffix}")
        if xml:
            (self.root / "Annotations" / f"{name}.xml").write_text(annotation(*classes), encoding="utf-8")

    def split(self, name: str, *ids: str) -> None:
        (self.root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")


@pytest.fixture
def voc(tmp_path: Path) -> VocFolder:
    return VocFolder(tmp_path / "VOC2012")


def test_labels_are_the_distinct_names_of_top_level_objects(voc: VocFolder) -> None:
    voc.image("a", "person", "dog", "person")
    voc.image("ü b", "aeroplane")
    voc.image("c", "tvmonitor", suffix=".PNG")
    voc.image("test", xml=False)
    voc.split("train", "c", "a", "ü b", "test")
    source = VocSource(voc.root)
    records = source.records("train")
    assert [(r.id, r.labels) for r in records] == [("c", (19,)), ("a", (11, 14)), ("ü b", (0,)), ("test", None)]
    assert all(record.mask_path is None for record in records)
    sample = source.read(records[1], with_mask=True)
    assert sample.image.shape == (4, 6, 3) and sample.mask is None
    assert sample.labels is not None and sample.labels.dtype == np.float32
    assert np.flatnonzero(sample.labels).tolist() == [11, 14] and sample.labels.shape == (20,)
    assert source.read(records[3]).labels is None
    assert source.spec == f"voc:{voc.root}" and source.splits() == ("train",)


def test_masks(voc: VocFolder) -> None:
    for name in "abc":
        voc.image(name, "dog")
    voc.split("val", "a", "b", "c")
    write_mask(voc.root / "SegmentationClass" / "a.png", np.full((4, 6), 12, dtype=np.uint8))
    write_mask(voc.root / "SegmentationClass" / "c.png", np.full((6, 4), 12, dtype=np.uint8))
    source = VocSource(voc.root)
    a, b, c = source.records("val")
    mask = source.read(a, with_mask=True).mask
    assert mask is not None and (mask == 12).all()
    assert source.read(a).mask is None
    assert source.read(b, with_mask=True).mask is None
    with pytest.raises(DataError, match=r"c\.png: the mask is 4 x 6 pixels, its image .*c\.jpg 6 x 4"):
        source.read(c, with_mask=True)


def test_other_classes_from_classes_txt(voc: VocFolder) -> None:
    (voc.root / "classes.txt").write_text("disc\nring\n")
    voc.image("a", "ring")
    voc.split("train", "a")
    source = VocSource(voc.root)
    assert source.classes == ("disc", "ring") and source.records("train")[0].labels == (1,)
    write_mask(voc.root / "SegmentationClass" / "a.png", np.full((4, 6), 3, dtype=np.uint8))
    with pytest.raises(DataError, match=r"a\.png: mask values \[3\] are no class; expected 0 \(background\), 1\.\.2"):
        source.read(VocSource(voc.root).records("train")[0], with_mask=True)


def test_every_problem_has_its_file_and_line(voc: VocFolder) -> None:
    voc.image("a", "dog")
    voc.image("b", "dog", "dgo")
    voc.image("broken", "dog")
    (voc.root / "Annotations" / "broken.xml").write_text("<annotation>\n<object>\n<name>dog</nam>\n")
    voc.image("twin", "dog")
    voc.image("twin", "dog", suffix=".png")
    voc.split("train", "a", "b", "missing", "a", "broken", "twin")
    source = VocSource(voc.root)
    problems = sorted(str(problem) for problem in source.scan("train").problems)
    expected = [
        r"Annotations/b\.xml, line 8: object 2: unknown class 'dgo'; known are aeroplane, .*did you mean 'dog'\?",
        r"Annotations/broken\.xml, line 3: not well-formed XML",
        r"train\.txt, line 3: image 'missing' is not in .*JPEGImages; add it or remove the line",
        r"train\.txt, line 4: image 'a' is already on line 1; remove one",
        r"JPEGImages/twin\.png: the same id as twin\.jpg",
    ]
    assert len(problems) == len(expected)
    for pattern in expected:
        assert sum(bool(re.search(pattern, problem)) for problem in problems) == 1, (pattern, problems)
    with pytest.raises(DataError, match=r"\(4 more problems: cpn check-data voc:"):
        source.records("train")


def test_annotations_in_other_encodings(voc: VocFolder) -> None:
    (voc.root / "classes.txt").write_text("löwe\nsofa\n", encoding="utf-8")
    text = annotation("löwe")
    for name, content in (
        ("utf16", text.encode("utf-16")),
        ("declared", b'<?xml version="1.0" encoding="ISO-8859-1"?>' + text.encode("latin-1")),
        ("undeclared", text.encode("latin-1")),
        ("unknown", b'<?xml version="1.0" encoding="klingon"?>' + text.encode("latin-1")),
        ("other class", b'<?xml version="1.0" encoding="latin-1"?>\n' + annotation("tür").encode("latin-1")),
        ("deep", b"<a>" * 200_000),
    ):
        voc.image(name)
        (voc.root / "Annotations" / f"{name}.xml").write_bytes(content)
    voc.image("fifo", xml=False)
    os.mkfifo(voc.root / "Annotations" / "fifo.xml")
    voc.split("train", "utf16", "declared", "undeclared", "unknown", "other class", "deep", "fifo")
    scan = VocSource(voc.root).scan("train")
    assert [record.labels for record in scan.records[:2]] == [(0,), (0,)]
    problems = [str(problem).removeprefix(str(voc.root / "Annotations") + "/") for problem in scan.problems]
    for found, expected in zip(
        problems,
        (
            r"undeclared.xml, line 4: not well-formed XML .*name its encoding in the first line where that is not UTF",
            r"unknown.xml, line 1: its encoding cannot be read \(unknown encoding: klingon\); save it as UTF-8",
            r"other class.xml, line 5: object 1: unknown class 'tür'",
            r"deep.xml, line 1: not well-formed XML",
            r"fifo.xml: a FIFO",
        ),
        strict=True,
    ):
        assert re.match(expected, found), found


def test_train_aug_from_its_list_in_the_two_path_form(voc: VocFolder) -> None:
    voc.image("2007_000032", "dog")
    voc.image("b c", "cat")
    (voc.root / "SegmentationClassAug").mkdir()
    write_mask(voc.root / "SegmentationClassAug" / "b c.png", np.zeros((4, 6), dtype=np.uint8))
    voc.split("train", "2007_000032")
    voc.split(
        "trainaug",
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png",
        "/JPEGImages/b c.jpg /SegmentationClassAug/b c.png",
    )
    source = VocSource(voc.root)
    assert set(source.splits()) == {"train", "trainaug", "train_aug"}
    records = source.records("train_aug")
    assert [record.id for record in records] == ["2007_000032", "b c"]
    assert records[0].mask_path is None
    assert records[1].mask_path == voc.root / "SegmentationClassAug" / "b c.png"


def test_train_aug_is_sbd_and_train_without_val(voc: VocFolder) -> None:
    for name in "abcdefg":
        voc.image(name, "dog")
    voc.split("train", "a", "b")
    voc.split("val", "f", "g")
    assert "train_aug" not in VocSource(voc.root).splits()
    sbd = voc.root.parent / "benchmark_RELEASE" / "dataset"
    sbd.mkdir(parents=True)
    (sbd / "train.txt").write_text("b\nc\nf\n")
    (sbd / "val.txt").write_text("g\ne\nc\n")
    assert [record.id for record in VocSource(voc.root).records("train_aug")] == ["a", "b", "c", "e"]


def test_archive_layout_and_missing_layout(tmp_path: Path) -> None:
    voc = VocFolder(tmp_path / "VOCdevkit" / "VOC2012")
    voc.image("a", "dog")
    voc.split("train", "a")
    assert VocSource(tmp_path).records("train")[0].labels == (11,)
    with pytest.raises(
        DataError, match=r"not in VOC layout: no folder JPEGImages and ImageSets/Segmentation; expected"
    ):
        VocSource(tmp_path / "VOCdevkit" / "VOC2012" / "Annotations")


def test_unknown_and_empty_splits_and_no_lists(voc: VocFolder) -> None:
    with pytest.raises(DataError, match=r"ImageSets/Segmentation: no lists; expected train\.txt"):
        VocSource(voc.root)
    voc.split("train")
    source = VocSource(voc.root)
    with pytest.raises(DataError, match="no split 'trian'; it has train"):
        source.records("trian")
    with pytest.raises(DataError, match="split 'train' has no images"):
        source.records("train")


def test_broken_image_names_the_file(voc: VocFolder) -> None:
    voc.image("a", "dog")
    voc.split("train", "a")
    (voc.root / "JPEGImages" / "a.jpg").write_bytes(b"")
    source = VocSource(voc.root)
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty"):
        source.read(source.records("train")[0])


@pytest.mark.data("coco_mini")
def test_real_photographs() -> None:
    source = VocSource(COCO_MINI)
    train, val = source.records("train"), source.records("val")
    assert (len(train), len(val)) == (311, 126)
    for record in [*train[::20], *val[::20]]:
        text = (COCO_MINI / "Annotations" / f"{record.id}.xml").read_text()
        named = set(re.findall(r"<name>\s*(.*?)\s*</name>", text))
        assert {VOC_CLASSES[number] for number in record.labels or ()} == named
        mask = source.read(record, with_mask=True).mask
        assert mask is not None
        assert {VOC_CLASSES[value - 1] for value in np.unique(mask) if 0 < value < 255} <= named
