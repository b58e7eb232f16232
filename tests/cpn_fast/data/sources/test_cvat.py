from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.data.sources.voc import VocSource
from tests.exports import HEIGHT, WIDTH, Files, complaint, mask_of, named, opened, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAT, DOG, BOTH = ("cat",), ("dog",), ("cat", "dog")
LABELS = "".join(
    f"<label>\n<name>{name}</name>\n<color>#{number}0{number}0ff</color>\n<attributes></attributes>\n</label>\n"
    for number, name in enumerate(("cat", "dog"))
)
BOX = '<box label="{}" source="manual" occluded="0" xtl="1.00" ytl="1.00" xbr="3.00" ybr="4.00" z_order="0"></box>'
SQUARE = '<polygon label="{}" occluded="0" points="{},{};{},{};{},{};{},{}" z_order="{}"></polygon>'


def square(label: str, x0: int, y0: int, x1: int, y1: int, order: int = 0) -> str:
    return SQUARE.format(label, x0, y0, x1, y0, x1, y1, x0, y1, order)


def image(name: str, *shapes: str, size: tuple[int, int] = (WIDTH, HEIGHT), subset: str = "") -> str:
    subset = f' subset="{subset}"' if subset else ""
    inside = "\n".join(shapes)
    return f'<image id="0" name="{name}"{subset} width="{size[0]}" height="{size[1]}">\n{inside}\n</image>\n'


def xml(*images: str, labels: str = LABELS) -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><id>1</id>\n'
        f"<labels>\n{labels}</labels>\n</task></meta>\n{''.join(images)}</annotations>\n"
    )


def one(*shapes: str, labels: str = LABELS) -> Files:
    return {"annotations.xml": xml(image("a.png", *shapes), labels=labels), "images/a.png": None}


GOOD: dict[str, tuple[Files, dict[str, tuple[str, ...] | None]]] = {
    "boxes": (one(BOX.format("dog"), BOX.format("cat")), {"a": BOTH}),
    "polygons": (one(square("dog", 1, 1, 3, 3)), {"a": DOG}),
    "a tag": (one('<tag label="cat" source="manual"></tag>'), {"a": CAT}),
    "lines and points": (one('<polyline label="cat" points="1,1;2,2" z_order="0"></polyline>',
                             '<points label="dog" points="1,1" z_order="0"></points>'), {"a": BOTH}),
    "an ellipse": (one('<ellipse label="cat" cx="4" cy="3" rx="2" ry="1" z_order="0"></ellipse>'), {"a": CAT}),
    "a mask": (one('<mask label="dog" rle="1, 2, 1" left="2" top="1" width="2" height="2" z_order="0"></mask>'),
               {"a": DOG}),
    "none": (one(), {"a": ()}),
    "attributes": (one('<box label="cat" xtl="0" ytl="0" xbr="2" ybr="2"><attribute name="age">3</attribute></box>'),
                   {"a": CAT}),
    "no list of labels": (one(BOX.format("dog"), labels=""), {"a": DOG}),
    "images beside the XML": ({"annotations.xml": xml(image("a.png", BOX.format("cat"))), "a.png": None}, {"a": CAT}),
    "folders and backslashes": ({"annotations.xml": xml(image("day 1\\a.png", BOX.format("cat")),
                                                        image("day 2/a.png", BOX.format("dog"))),
                                 "images/day 1/a.png": None, "images/day 2/a.png": None},
                                {"day 1/a": CAT, "day 2/a": DOG}),
    "subsets": ({"annotations.xml": xml(image("a.png", BOX.format("cat"), subset="Train"),
                                        image("b.png", BOX.format("dog"), subset="Test")),
                 "images/Train/a.png": None, "images/Test/b.png": None}, {"Train/a": CAT, "Test/b": DOG}),
    "a label called background": (one(square("background", 0, 0, 2, 2), square("cat", 1, 1, 3, 3),
                                      labels=LABELS + "<label><name>background</name></label>"), {"a": CAT}),
    "a file per subset": ({"train.xml": xml(image("a.png", BOX.format("cat"))), "images/a.png": None,
                           "val.xml": xml(image("sub/b.png", BOX.format("dog"))), "images/sub/b.png": None},
                          {"a": CAT, "sub/b": DOG}),
    "escaped names": (one('<tag label="a &lt;&amp; b"/>', labels="<label><name>a &lt;&amp; b</name></label>"),
                      {"a": ("a <& b",)}),
}  # fmt: skip

BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><annotations>&b;</annotations>'
BAD: dict[str, tuple[Files, str]] = {
    "an image is missing": ({"annotations.xml": xml(image("b.png")), "images/a.png": None},
                            r"annotations\.xml, line 1\d: image 'b\.png' is not in"),
    "outside": ({"annotations.xml": xml(image("../a.png")), "images/a.png": None}, "image '../a.png' is outside"),
    "an unknown label": (one(BOX.format("cow")), r"annotations\.xml, line 19: unknown class 'cow'; known are cat, dog"),
    "no label": (one('<box xtl="1" ytl="1" xbr="3" ybr="4"/>'), "<box> of 'a.png': no label; add it"),
    "a side is missing": (one('<box label="cat" xtl="1" ytl="1" xbr="3"/>'), "no attribute 'ybr'"),
    "a side is text": (one('<box label="cat" xtl="1" ytl="?" xbr="3" ybr="3"/>'), r"ytl holds '\?', which is no"),
    "points of one number": (one('<polygon label="cat" points="1;2;3"/>'), "cannot draw it .*no list of pairs"),
    "far outside": (one('<polygon label="cat" points="1,1;5000,1;2,2"/>'), "cannot draw it .*a coordinate is 5000"),
    "runs that do not fit": (one('<mask label="dog" rle="1, 1" left="2" top="1" width="2" height="2"/>'),
                             "its runs add up to 2 pixels, expected 4"),
    "a mask outside": (one('<mask label="dog" rle="4" left="7" top="1" width="2" height="2"/>'), "outside of the"),
    "another size": ({"annotations.xml": xml(image("a.png", square("cat", 0, 0, 2, 2), size=(80, 60))),
                      "images/a.png": None}, r"annotated at 80 x 60 pixels in .*annotations\.xml, the image has 8 x 6"),
    "no size": ({"annotations.xml": '<annotations><image name="a.png" width="" height="6"/></annotations>',
                 "images/a.png": None}, "image 'a.png': width '', height '6'; expected both"),
    "cut off": ({"annotations.xml": xml(image("a.png"))[:-30], "images/a.png": None}, r"line \d+: not well-formed XML"),
    "another root": ({"annotations.xml": "<annotation/>", "images/a.png": None}, "<annotation> is its root"),
    "a video": ({"annotations.xml": "<annotations><track/></annotations>", "images/a.png": None}, "tracks of a video"),
    "entities": ({"annotations.xml": BOMB, "images/a.png": None}, "line 1: declares an entity"),
    "too deep": ({"annotations.xml": "<a>" * 200, "images/a.png": None}, "line 1: elements nested too deep"),
    "a label twice": (one(labels=LABELS + LABELS), "<labels>: class 'cat' comes twice"),
    "an unknown encoding": ({"annotations.xml": '<?xml version="1.0" encoding="none"?><annotations/>',
                             "images/a.png": None}, "line 1: (its encoding|not well-formed XML .unknown encoding)"),
    "nothing of it": ({"images/a.png": None}, r"no annotations\.xml, and no SegmentationClass/"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    files, expected = GOOD[name]
    source = opened(write(tmp_path, files))
    assert source.spec == f"cvat:{tmp_path}"
    assert named(source) == expected


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    files, message = BAD[name]
    found = complaint(f"cvat:{write(tmp_path, files)}")
    assert re.search(message, found), found


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    files = one(BOX.format("cat"), '<box label="cat" xtl="1" ytl="1" xbr="3"/>')
    lines = files["annotations.xml"].split("\n")
    expected = next(number for number, line in enumerate(lines, start=1) if 'xbr="3"/>' in line)
    assert f"annotations.xml, line {expected}: <box>" in complaint(write(tmp_path, files))


def test_splits_are_the_subsets(tmp_path: Path) -> None:
    assert opened(write(tmp_path / "a", GOOD["subsets"][0])).splits() == ("test", "train", "all")
    assert opened(write(tmp_path / "b", GOOD["a file per subset"][0])).splits() == ("train", "val", "all")


def test_the_ground_truth(tmp_path: Path) -> None:
    """Higher ones lie on top, of equal ones the later; runs go row by row in their rectangle; boxes are void."""
    mask = '<mask label="dog" rle="1, 2, 1" left="0" top="4" width="2" height="2" z_order="0"/>'
    files = one(square("dog", 2, 0, 5, 3, order=2), square("cat", 0, 0, 4, 2, order=1), square("cat", 5, 4, 8, 6),
                square("dog", 6, 4, 7, 6), mask,
                '<box label="cat" xtl="6" ytl="0" xbr="8" ybr="2" z_order="9"/>')  # fmt: skip
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:2, 6:] = 255
    expected[4:6, 5:8] = 1
    expected[4:6, 6] = 2
    expected[:2, :4] = 1
    expected[:3, 2:5] = 2
    expected[4, 1] = expected[5, 0] = 2
    np.testing.assert_array_equal(mask_of(opened(write(tmp_path, files)), "a"), expected)


def test_an_ellipse_has_its_area_and_turns(tmp_path: Path) -> None:
    shape = '<ellipse label="cat" cx="40" cy="30" rx="20" ry="10" rotation="{}" z_order="0"/>'
    for angle in (0, 90):
        root = write(
            tmp_path / str(angle), {"annotations.xml": xml(image("a.png", shape.format(angle), size=(80, 60)))}
        )
        Image.new("RGB", (80, 60)).save(root / "a.png")
        mask = mask_of(opened(root), "a")
        assert mask is not None
        assert abs(int(mask.sum()) - np.pi * 200) < 10
        rows, columns = np.nonzero(mask)
        extent = (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert extent == ((40, 20) if angle == 0 else (20, 40))


def test_a_tag_alone_gives_no_ground_truth_among_outlines(tmp_path: Path) -> None:
    both = xml(image("a.png", '<tag label="dog"/>'), image("b.png", square("cat", 0, 0, 1, 1)), image("c.png"))
    source = opened(write(tmp_path, {"annotations.xml": both, "a.png": None, "b.png": None, "c.png": None}))
    assert mask_of(source, "a") is None
    np.testing.assert_array_equal(mask_of(source, "c"), np.zeros((HEIGHT, WIDTH)))


LABELMAP = "# label:color_rgb:parts:actions\ndog:200,0,0::\nbackground:0,0,0::\ncat:0,100,50::\n"
COLOURS = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
COLOURS[:2] = (0, 100, 50)
COLOURS[4:, :3] = (200, 0, 0)
COLOURS[5, 7] = (224, 224, 192)
MASKS: Files = {"labelmap.txt": LABELMAP, "SegmentationClass/a.png": COLOURS,
                "SegmentationClass/b.png": np.zeros_like(COLOURS), "JPEGImages/a.png": None, "JPEGImages/b.png": None,
                "SegmentationObject/a.png": COLOURS, "ImageSets/Segmentation/default.txt": "a\nb\n"}  # fmt: skip


def test_masks_in_colours_of_any_order(tmp_path: Path) -> None:
    source = opened(write(tmp_path, MASKS))
    assert source.spec == f"cvat:{tmp_path}" and source.classes == ("dog", "cat") and source.splits()[-1] == "all"
    assert named(source) == {"a": ("dog", "cat"), "b": ()}
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:2], expected[4:, :3], expected[5, 7] = 2, 1, 255
    np.testing.assert_array_equal(mask_of(source, "a"), expected)


BAD_MASKS: dict[str, tuple[Files, str]] = {
    "an unknown colour": ({"SegmentationClass/b.png": COLOURS + 1}, r"b\.png: the colour .* is no class's alone"),
    "an image is missing": ({"SegmentationClass/c.png": COLOURS}, r"c\.png: no image is called so .* expected 'c'"),
    "another size": ({"SegmentationClass/a.png": COLOURS[:3]}, r"a\.png: the mask is 8 x 3 pixels, its image"),
    "a labelmap without background": ({"labelmap.txt": "dog:200,0,0::\n"}, "background"),
    "a labelmap of another form": ({"labelmap.txt": "dog 200 0 0\n"}, r"labelmap\.txt, line 1"),
    "two lists": ({"ImageSets/Segmentation/val.txt": "a\n"}, r"val\.txt, line 1: image 'a' is also in default\.txt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks(tmp_path: Path, name: str) -> None:
    changed, message = BAD_MASKS[name]
    found = complaint(f"cvat:{write(tmp_path, {**MASKS, **changed})}")
    assert re.search(message, found), found


def test_a_labelmap_without_colours_is_in_those_of_voc(tmp_path: Path) -> None:
    """As Datumaro 1.13 writes it."""
    colours = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    colours[1], colours[2] = (128, 0, 0), (0, 128, 0)
    files = {**MASKS, "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:::\ncat:::\ndog:::\n",
             "SegmentationClass/a.png": colours, "SegmentationClass/b.png": colours * 0}  # fmt: skip
    source = opened(write(tmp_path, files))
    assert named(source) == {"a": BOTH, "b": ()}
    mask = mask_of(source, "a")
    assert mask is not None and mask[1:3, 0].tolist() == [1, 2]


def test_voc_annotations_with_a_namespace_and_a_labelmap(tmp_path: Path) -> None:
    """CVAT's "PASCAL VOC 1.1": annotations, and masks in the labelmap's colours."""
    annotation = '<v:annotation xmlns:v="urn:voc"><v:object><v:name>cat</v:name></v:object></v:annotation>'
    plain = '<annotation xmlns="http://example.org/voc"><object><name>dog</name></object></annotation>'
    source = opened(write(tmp_path, {**MASKS, "Annotations/a.xml": annotation, "Annotations/b.xml": plain}))
    assert isinstance(source, VocSource) and source.classes == ("dog", "cat")
    assert {record.id: record.labels for record in source.records("default")} == {"a": (1,), "b": (0,)}
    mask = source.read(source.records("default")[0], with_mask=True).mask
    assert mask is not None and (mask[:2] == 2).all() and (mask[4:, :3] == 1).all()
