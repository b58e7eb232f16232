"""Names of any script in pictures, compared with what Pillow draws with the font itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

import cpn_fast.files.lettering as lettering
from cpn_fast.files.contact_sheet import SheetItem, write_contact_sheet
from cpn_fast.files.lettering import draw_text, shortened, text_length

DEJAVU = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
WHITE = (255, 255, 255)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Only these fonts beside Pillow's own."""
    fonts: tuple[str, ...] = request.param
    for cached in (lettering._font, lettering._has, lettering._font_of):
        cached.cache_clear()
    monkeypatch.setattr(lettering, "_found", lambda: fonts)
    request.addfinalizer(lambda: [cached.cache_clear() for cached in (lettering._has, lettering._font_of)])
    request.addfinalizer(lettering._font.cache_clear)


def picture(text: str) -> np.ndarray:
    image = Image.new("RGB", (400, 30))
    draw_text(ImageDraw.Draw(image), (3, 4), text, 13, WHITE)
    return np.asarray(image)


def pillows(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    image = Image.new("RGB", (400, 30))
    baseline = 4 + ImageFont.load_default(size=13).getmetrics()[0]  # type: ignore[union-attr]
    ImageDraw.Draw(image).text((3, baseline), text, fill=WHITE, font=font, anchor="ls")
    return np.asarray(image)


@pytest.mark.parametrize("only", [(DEJAVU,)], indirect=True)
@pytest.mark.parametrize("text", ["süßer Hund", "кошка", "Ελληνικά ñ"])
def test_a_name_is_drawn_by_the_font_that_has_all_of_it(only: None, text: str) -> None:
    font = ImageFont.truetype(DEJAVU, 13)
    np.testing.assert_array_equal(picture(text), pillows(text, font))
    assert text_length(text, 13) == font.getlength(text)
    plain = ImageFont.load_default(size=13)
    assert isinstance(plain, ImageFont.FreeTypeFont)
    np.testing.assert_array_equal(picture("plain"), pillows("plain", plain))


@pytest.mark.parametrize("only", [(), (DEJAVU,)], indirect=True)
def test_what_no_font_has_is_an_escape_and_never_a_box(only: None) -> None:
    np.testing.assert_array_equal(picture("cat \U0001fae8"), picture(r"cat \U0001fae8"))
    np.testing.assert_array_equal(picture("a\nb\x07"), picture(r"a\nb\x07"))
    np.testing.assert_array_equal(picture("हि"), picture(r"\u0939\u093f"))  # a lone vowel sign has no circle either


@pytest.mark.parametrize("only", [()], indirect=True)
def test_without_another_font_umlauts_are_escapes(only: None) -> None:
    np.testing.assert_array_equal(picture("süß"), picture(r"s\xfc\xdf"))


@pytest.mark.parametrize("only", [(DEJAVU,)], indirect=True)
def test_a_name_of_several_scripts_goes_on_where_the_last_part_ends(only: None) -> None:
    mixed = picture("猫 кот")
    assert text_length("猫 кот", 13) == pytest.approx(
        text_length(r"\u732b ", 13) + ImageFont.truetype(DEJAVU, 13).getlength("кот"), abs=2
    )
    assert (mixed[:, 200:] == 0).all() and mixed[:, 50:].any()


def test_long_names_lose_their_middle() -> None:
    name = "a" * 50 + "b" * 200 + ".jpg"
    shown = shortened(name, 13, 200)
    assert text_length(shown, 13) <= 200 and shown.startswith("aaa") and shown.endswith(".jpg") and "..." in shown
    assert shortened("short", 13, 200) == "short" and shortened(name, 13, 1) == "..."


def test_the_contact_sheet_names_classes_of_any_script_in_their_colours(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[:20], mask[30:] = 1, 255
    item = SheetItem(np.zeros((40, 40, 3), np.uint8), mask, "имя\n0.50")
    sheets = []
    for classes in (("кошка", "not in the masks"), ("cat", "not in the masks")):
        write_contact_sheet(tmp_path / "sheet.png", [item], classes=classes, note="the number is the confidence")
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png")))
    with_legend = sheets[0]
    assert (with_legend == (128, 0, 0)).all(axis=2).sum() >= 13 * 13  # VOC's colour of class 1
    assert (with_legend == 255).all(axis=2).sum() >= 13 * 13  # void
    different = np.argwhere((sheets[0] != sheets[1]).any(axis=2))
    assert different[:, 0].max() < 46 and len(different) > 20  # only the legend's line differs
