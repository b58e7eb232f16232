from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_classes, read_labelmap, read_mask, write_labelmap, write_mask
from cpn_fast.files.palette import voc_palette

PUBLISHED = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
"""Colours from the VOC 2012 development kit's documentation, and void below."""


def test_voc_palette_is_the_published_one() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    for value, colour in {**PUBLISHED, 255: (224, 224, 192)}.items():
        assert tuple(palette[value]) == colour
    assert len({tuple(colour) for colour in palette}) == 256


def test_mask_round_trip_and_colours(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 1, 15, 20, 255], dtype=np.uint8), (9, 13))
    path = tmp_path / "new folder" / "ü mask.png"
    write_mask(path, mask)
    np.testing.assert_array_equal(read_mask(path, 20), mask)
    seen = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(seen, voc_palette()[mask])
    assert [p.name for p in path.parent.iterdir()] == ["ü mask.png"]


def test_write_mask_refuses_wrong_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W\] mask, got int64"):
        write_mask(tmp_path / "a.png", np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match=r"\[256, 3\] palette"):
        write_mask(tmp_path / "a.png", np.zeros((2, 2), dtype=np.uint8), np.zeros((3, 256), dtype=np.uint8))
    assert not list(tmp_path.iterdir())


def test_mask_values_are_checked(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.array([[0, 3, 4, 255]], dtype=np.uint8))
    assert read_mask(tmp_path / "a.png", 4).max() == 255
    with pytest.raises(DataError, match=r"a\.png: mask values \[4\] are no class; expected 0 \(background\), 1\.\.3"):
        read_mask(tmp_path / "a.png", 3)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), [[0, 3, 4, 255]])


def test_grey_mask_works_and_coloured_mask_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 2]], dtype=np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png", 2), [[0, 2]])
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"rgb\.png: a mask of mode 'RGB'; expected a palette or 8-bit grey"):
        read_mask(tmp_path / "rgb.png", 2)


def test_labelmap_round_trip(tmp_path: Path) -> None:
    classes = ("cat", "süßer hund", "odd:name")
    write_labelmap(tmp_path / "labelmap.txt", classes)
    lines = (tmp_path / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:3] == ["background:0,0,0::", "cat:128,0,0::"]
    assert read_labelmap(tmp_path / "labelmap.txt") == classes


def test_labelmap_errors(tmp_path: Path) -> None:
    path = tmp_path / "labelmap.txt"
    path.write_text("background:0,0,0::\ncat\n")
    with pytest.raises(DataError, match=r"labelmap\.txt, line 2: found 'cat', expected `name:r,g,b::`"):
        read_labelmap(path)
    path.write_text("cat:1,1,1::\n")
    with pytest.raises(DataError, match="is called background"):
        read_labelmap(path)
    with pytest.raises(DataError, match="255 classes, at most 254"):
        write_labelmap(path, [f"c{number}" for number in range(255)])
    write_labelmap(path, [f"c{number}" for number in range(254)])
    assert len(read_labelmap(path)) == 254


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ndog\ncat\n", r"classes\.txt, line 3: class 'cat' is already on line 1"),
        (b"background\ncat\n", r"line 1: background is mask value 0"),
        (b"\n\n", "no class names"),
        (b"cat\n\xe4\n", r"line 2: not UTF-8 \(byte 0xe4\)"),
        ("\n".join(f"c{number}" for number in range(3000)).encode(), "3000 classes, at most 254"),
    ],
)
def test_classes_file_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_classes_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("\ufeffzebra\r\n\r\n  ant  \r\n".encode())
    assert read_classes(tmp_path / "classes.txt") == ("zebra", "ant")
    with pytest.raises(DataError, match="no such file"):
        read_classes(tmp_path / "other.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_mask(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.zeros((2, 2), dtype=np.uint8))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(DataError, match="no permission"):
        read_mask(tmp_path / "a.png")
