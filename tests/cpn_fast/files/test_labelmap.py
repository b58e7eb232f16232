"""Masks in the colours of a labelmap, in any order of its lines, as CVAT exports them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.labelmap import labelmap_of, read_labelmap_file
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.masks import read_mask, write_labelmap, write_mask

EXPORT = "# label:color_rgb:parts:actions\ngreen:48,112,32::\nbackground:0,0,0::\nred:176,112,32::\n"
COLOURS = {0: (0, 0, 0), 1: (48, 112, 32), 2: (176, 112, 32), 255: (224, 224, 192)}
VALUES = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (7, 9))
"""What the export means: green is class 1, red class 2, by the order of the lines."""


@pytest.fixture
def folder(tmp_path: Path) -> MaskFolder:
    (tmp_path / "labelmap.txt").write_text(EXPORT)
    (tmp_path / "SegmentationClass").mkdir()
    return MaskFolder.at(tmp_path)


def rgb() -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    for value, colour in COLOURS.items():
        table[value] = colour
    return table[VALUES]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P of any order"])
def test_colours_decide(folder: MaskFolder, mode: str) -> None:
    image = Image.fromarray(rgb())
    if mode.startswith("P"):
        image = image.quantize(8, dither=Image.Dither.NONE)  # the indices are those that Pillow likes
        assert sorted(np.unique(np.asarray(image))) != [0, 1, 2, 255]
    image = image.convert("RGBA") if mode == "RGBA" else image
    image.save(folder.mask_path("a"))
    assert folder.classes() == ("green", "red")
    np.testing.assert_array_equal(folder.read("a", 2), VALUES)


def test_numbers_are_those_of_the_lines(folder: MaskFolder) -> None:
    """Without colours of its own a mask numbers the lines from 0; void stays."""
    lines = np.array([[0, 1, 2, 255]], np.uint8)
    Image.fromarray(lines).save(folder.mask_path("a"))
    np.testing.assert_array_equal(folder.read("a", 2), [[1, 0, 2, 255]])
    foreign = Image.fromarray(lines)
    foreign.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
    foreign.save(folder.mask_path("b"))
    np.testing.assert_array_equal(folder.read("b", 2), [[1, 0, 2, 255]])


def test_a_line_in_the_colour_of_void_is_void_and_no_class(folder: MaskFolder) -> None:
    (folder.root / "labelmap.txt").write_text(EXPORT.replace("red", "ignored:224,224,192::\nred"))
    assert folder.classes() == ("green", "red")
    Image.fromarray(rgb()).save(folder.mask_path("a"))
    np.testing.assert_array_equal(folder.read("a", 2), VALUES)
    Image.fromarray(np.array([[0, 1, 2, 3, 255]], np.uint8)).save(folder.mask_path("b"))  # numbers of the lines
    np.testing.assert_array_equal(folder.read("b", 2), [[1, 0, 255, 2, 255]])


def test_our_own_folders_are_read_as_before(tmp_path: Path) -> None:
    palette = np.random.default_rng(2).integers(0, 256, (256, 3)).astype(np.uint8)
    for colours in (None, palette):
        write_labelmap(tmp_path / "labelmap.txt", ("a", "b"), colours)
        write_mask(tmp_path / "SegmentationClass" / "x.png", VALUES, colours)
        np.testing.assert_array_equal(MaskFolder.at(tmp_path).read("x", 2), VALUES)
        os.utime(tmp_path / "labelmap.txt", ns=(1, 1))


def test_a_changed_labelmap_is_read_again(folder: MaskFolder) -> None:
    path = folder.root / "labelmap.txt"
    assert labelmap_of(path) is labelmap_of(path)
    path.write_text(EXPORT.replace("green", "olive"))
    assert folder.classes() == ("olive", "red")
    path.unlink()
    assert folder.classes() is None and labelmap_of(path) is None


def test_colours_that_mean_nothing(folder: MaskFolder) -> None:
    blended = rgb()
    blended[3, 3] = (47, 112, 32)
    Image.fromarray(blended).save(folder.mask_path("a"))
    with pytest.raises(
        DataError, match=r"a\.png: the colour \(47, 112, 32\) is no class's alone.*green \(48, 112, 32\)"
    ):
        folder.read("a", 2)
    clear = Image.fromarray(rgb()).convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.save(folder.mask_path("b"))
    with pytest.raises(DataError, match=r"b\.png: a mask of mode 'RGBA'; expected the colours of labelmap\.txt as RGB"):
        folder.read("b", 2)
    with pytest.raises(DataError, match="a mask of mode 'RGB'; expected a palette or 8-bit grey"):
        read_mask(folder.mask_path("a"))
    (folder.root / "labelmap.txt").write_text("background:0,0,0::\nx:9,9,9::\ny:9,9,9::\n")
    Image.new("RGB", (2, 2), (9, 9, 9)).save(folder.mask_path("c"))
    with pytest.raises(DataError, match=r"the colour \(9, 9, 9\) is no class's alone"):
        folder.read("c", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:0,0,0::\n", "none of its 1 labels is called background"),
        ("background:0,0,0::\na:1,2::\n", "line 2: found 'a:1,2::', expected `name:r,g,b::`"),
        ("background:0,0,0::\na:1,2,256::\n", "line 2: found"),
        ("background:0,0,0::\na:1,2,3::\na:4,5,6::\n", "line 3: 'a' comes twice"),
        ("background:0,0,0::\n:1,2,3::\n", "line 2: the name '' is empty"),
        ("background:::\n" + "".join(f"{n}:::\n" for n in range(255)), "256 labels, at most 255"),
    ],
)
def test_bad_labelmaps(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labelmap\.txt.*{message}"):
        read_labelmap_file(tmp_path / "labelmap.txt")


def test_labels_without_a_colour(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text("background:::\nmy: class:1, 2, 3:part:action\n")
    found = read_labelmap_file(tmp_path / "labelmap.txt")
    assert found.classes == ("my: class",) and dict(found.colour_values) == {(1, 2, 3): 1}
