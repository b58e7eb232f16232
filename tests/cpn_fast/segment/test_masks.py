"""The masks that a segmentation network trains on: where they are found, what their values mean, what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.voc import VOC_CLASSES
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_mask, write_labelmap, write_mask
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_fast.segment.masks import FolderMasks, check_masks, open_masks, reviewed
from tests.cpn_fast.segment.voc_squares import draw, make


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A data set to change."""
    return make(tmp_path / "voc")


@pytest.fixture
def pseudo(squares: Path, tmp_path: Path) -> Path:
    """Masks of the training images in a folder of their own."""
    folder = tmp_path / "pseudo" / "SegmentationClass"
    folder.mkdir(parents=True)
    for path in (squares / "SegmentationClass").glob("train_*.png"):
        shutil.copy(path, folder)
    return folder.parent


def check(squares: Path, masks: Path | str, allow_missing: bool = False) -> list[bool]:
    source = open_source(f"voc:{squares}")
    return check_masks(open_masks(str(masks), source), source.records("train"), allow_missing)


def test_masks_are_found_with_and_without_their_folder(squares: Path, pseudo: Path) -> None:
    source = open_source(f"voc:{squares}")
    record = source.records("train")[1]
    for folder in (pseudo, pseudo / "SegmentationClass", "truth"):
        assert check(squares, folder) == [True] * 4
        mask = open_masks(str(folder), source).read(record).mask
        assert mask is not None and np.array_equal(mask, draw(1, 48, 64))


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("others", [(), VOC_CLASSES[3:]])
def test_labelmap_of_another_order_is_mapped(squares: Path, pseudo: Path, inner: bool, others: tuple[str, ...]) -> None:
    """A folder that knows bird as 1, aeroplane as 2 and bicycle as 3; also named by its SegmentationClass."""
    write_labelmap(pseudo / "labelmap.txt", ("bird", "aeroplane", "bicycle", *others))
    theirs = np.zeros(256, dtype=np.uint8)
    theirs[[3, 1, 2, 255]] = 1, 2, 3, 255
    for path in pseudo.rglob("*.png"):
        write_mask(path, theirs[read_mask(path)])
    source = open_source(f"voc:{squares}")
    masks = open_masks(str(pseudo / "SegmentationClass" if inner else pseudo), source)
    for number, record in enumerate(source.records("train")):
        mask = masks.read(record).mask
        assert mask is not None and np.array_equal(mask, draw(number, *mask.shape))
    if others:
        target = pseudo / "SegmentationClass" if inner else pseudo
        assert run_evaluate(EvaluateConfig(target, f"voc:{squares}", split="train"))["miou"] == 1.0


def test_unknown_class_of_the_labelmap(squares: Path, pseudo: Path) -> None:
    write_labelmap(pseudo / "labelmap.txt", ("aeroplane", "zebra"))
    with pytest.raises(DataError, match=r"labelmap\.txt names zebra, which voc:.* does not know"):
        check(squares, pseudo)


def test_folder_without_masks(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--masks .*nowhere: no masks there \(SegmentationClass/ID.png or ID.png\)"):
        check(squares, tmp_path / "nowhere")


def test_missing_masks_are_counted_and_the_first_named(squares: Path, pseudo: Path, caplog) -> None:
    for name in ("train_1", "train_3"):
        (pseudo / "SegmentationClass" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 4 images have no mask, the first .*train_1\.png; .*--allow-missing"):
        check(squares, pseudo)
    with caplog.at_level(logging.WARNING):
        assert check(squares, pseudo, allow_missing=True) == [True, False, True, False]
    assert "2 of 4 images have no mask and are excluded" in caplog.text


def test_allow_missing_still_needs_some(squares: Path, pseudo: Path) -> None:
    for name in ("train_0", "train_1", "train_2", "train_3"):
        (pseudo / "SegmentationClass" / f"{name}.png").rename(pseudo / "SegmentationClass" / f"other {name}.png")
    with pytest.raises(DataError, match="4 of 4 images have no mask"):
        check(squares, pseudo, allow_missing=True)


def test_truth_that_is_missing(squares: Path) -> None:
    (squares / "SegmentationClass" / "train_2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images have no mask, the first that of .*train_2\.png"):
        check(squares, "truth")
    assert check(squares, "truth", allow_missing=True) == [True, True, False, True]


def test_mask_of_another_size(squares: Path, pseudo: Path) -> None:
    for name in ("train_1", "train_2"):
        write_mask(pseudo / "SegmentationClass" / f"{name}.png", np.zeros((48, 63), dtype=np.uint8))
    expected = r"train_1\.png: the mask is 63 x 48 pixels .*its image .*train_1.png 64 x 48 .*1 more of the 4 images"
    with pytest.raises(DataError, match=expected):
        check(squares, pseudo, allow_missing=True)
    source = open_source(f"voc:{squares}")
    with pytest.raises(DataError, match="the mask is 63 x 48"):
        open_masks(str(pseudo), source).read(source.records("train")[1])


@pytest.mark.parametrize("labelmap", [False, True])
def test_value_that_is_no_class(squares: Path, pseudo: Path, labelmap: bool) -> None:
    """Outside of the labelmap's classes where there is one, else of the source's."""
    if labelmap:
        write_labelmap(pseudo / "labelmap.txt", VOC_CLASSES[:5])
    mask = draw(2, 48, 64)
    mask[0, 0] = 6 if labelmap else 21
    write_mask(pseudo / "SegmentationClass" / "train_2.png", mask)
    expected = r"train_2\.png: mask values \[6\] are no class; expected 0 \(background\), 1\.\.5"
    with pytest.raises(DataError, match=expected if labelmap else r"train_2\.png: mask values \[21\].*1\.\.20"):
        check(squares, pseudo)


def test_colours_are_no_masks(squares: Path, pseudo: Path) -> None:
    Image.new("RGB", (64, 48)).save(pseudo / "SegmentationClass" / "train_1.png")
    with pytest.raises(DataError, match=r"train_1\.png: a mask of mode 'RGB'"):
        check(squares, pseudo)


def test_masks_of_a_source_that_makes_its_own(small_demo: Path) -> None:
    source = open_source(f"demo:{small_demo}")
    masks = open_masks("truth", source)
    assert not isinstance(masks, FolderMasks)
    assert check_masks(masks, source.records("val"), False) == [True] * 6


def test_only_the_reviewed_masks(squares: Path, pseudo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = open_source(f"voc:{squares}")
    records = source.records("train")
    ids = [record.id for record in records]
    review = pseudo / "review.csv"
    review.write_text(f"name,decision\n{ids[2]},accepted\n{ids[0]},rejected\n{ids[3]},accepted\n")
    for folder in (pseudo, pseudo / "SegmentationClass"):
        masks = open_masks(str(folder), source)
        assert reviewed(masks, records, "accepted", None) == [False, False, True, True]
        assert f"2 of 4 images: those whose mask is accepted by {review}" in caplog.text
    assert reviewed(masks, records, None, None) == [True] * 4
    other = review.rename(tmp_path / "other.csv")
    assert reviewed(masks, records, "rejected", other) == [True, False, False, False]
    with pytest.raises(DataError, match=r"review\.csv: no such file"):
        reviewed(masks, records, "accepted", None)
    with pytest.raises(DataError, match=r"other\.csv: none of its 2 accepted masks is of this split \(1 images"):
        reviewed(masks, records[:1], "accepted", other)
    with pytest.raises(DataError, match="--only accepted: goes by a review of a folder of masks; leave it out with"):
        reviewed(open_masks("truth", source), records, "accepted", None)
