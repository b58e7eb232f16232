"""Text in pictures, in any script that a font here can draw; other characters as escapes, never as empty boxes."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf", "arialuni.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "msyh.ttc",
    "malgun.ttf", "YuGothM.ttc", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "Nirmala.ttf", "unifont.otf", "unifont.ttf",
)  # fmt: skip
"""Fonts of Linux, macOS and Windows with a wide coverage, together most scripts; looked for only when needed."""

_NO_CHARACTER = "\U0010fffd"
"""Of the private use area: a font draws it as it draws whatever it lacks."""


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: tuple[int, int, int]
) -> None:
    """Draw one line.

    Args:
        draw: of the picture.
        place: left and top of the line.
        text: without line breaks; they are drawn as escapes.
        size: of the font, in pixels.
        fill: colour.
    """
    left, top = place
    first = _font(0, size)
    ascent = first.getmetrics()[0] if isinstance(first, ImageFont.FreeTypeFont) else 0
    for part, font in _parts(text, size):
        if isinstance(font, ImageFont.FreeTypeFont):  # fonts of different heights stand on one line
            draw.text((left, top + ascent), part, fill=fill, font=font, anchor="ls")
        else:
            draw.text((left, top), part, fill=fill, font=font)
        left += font.getlength(part)


def text_length(text: str, size: int) -> float:
    """The width of a line in pixels."""
    return sum(font.getlength(part) for part, font in _parts(text, size))


def shortened(text: str, size: int, width: float) -> str:
    """A line that fits into a width, with its middle left out where it is longer."""
    if text_length(text, size) <= width:
        return text
    keep = len(text)
    while keep > 1:
        keep = min(keep - 1, int(keep * max(width, 1) / text_length(text[:keep], size)) + 1)
        shown = f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"
        if text_length(shown, size) <= width:
            return shown
    return "..."


def _parts(text: str, size: int) -> Iterator[tuple[str, Font]]:
    """The text in parts of one font each: the first font that has all of it, else character by character."""
    whole = "".join(_escaped(letter) if unicodedata.category(letter)[0] == "C" else letter for letter in text)
    number = 0
    while (font := _font(number, size)) is not None:
        if all(_has(number, letter) for letter in whole):
            yield whole, font
            return
        number += 1
    run, run_font = "", 0
    for letter in whole:
        found = _font_of(letter)
        shown, chosen = (_escaped(letter), 0) if found is None else (letter, found)
        if run and chosen != run_font:
            yield run, _need(run_font, size)
            run = ""
        run, run_font = run + shown, chosen
    if run:
        yield run, _need(run_font, size)


@lru_cache(maxsize=4096)
def _font_of(letter: str) -> int | None:
    """The number of the first font that has a character."""
    number = 0
    while _font(number, 13) is not None:
        if _has(number, letter):
            return number
        number += 1
    return None


@lru_cache(maxsize=65536)
def _has(number: int, letter: str) -> bool:
    """Whether a font has a character: draws it otherwise than what it lacks."""
    if number == 0:
        return letter.isascii()  # Pillow's own has little more, or is a bitmap where FreeType is missing
    if letter.isspace():
        return True
    # Without shaping, which would put a circle under a lone accent, also under one that the font lacks.
    font = ImageFont.truetype(_found()[number - 1], 13, layout_engine=ImageFont.Layout.BASIC)
    found, lacking = font.getmask(letter), font.getmask(_NO_CHARACTER)
    return (found.size, bytes(found)) != (lacking.size, bytes(lacking))


def _need(number: int, size: int) -> Font:
    font = _font(number, size)
    assert font is not None
    return font


@lru_cache(maxsize=128)
def _font(number: int, size: int) -> Font | None:
    """The fonts in the order in which they are asked: Pillow's own, DejaVu, the system's; None = no more."""
    if number == 0:
        return ImageFont.load_default(size=size)
    names = _found()
    return ImageFont.truetype(names[number - 1], size) if number <= len(names) else None


@lru_cache(maxsize=1)
def _found() -> tuple[str, ...]:
    """The fonts beside Pillow's own that can be opened here."""
    try:
        spec = importlib.util.find_spec("matplotlib")
    except ImportError:
        spec = None
    shipped = [] if spec is None or spec.origin is None else [
        str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
    ]  # fmt: skip
    found = []
    for name in (*shipped, *_SYSTEM_FONTS):
        try:
            ImageFont.truetype(name, 13)
        except (OSError, ImportError):
            continue
        found.append(name)
    return tuple(found)


def _escaped(letter: str) -> str:
    r"""A character as Python's escape, e.g. `\u4e2d`."""
    return letter.encode("unicode_escape").decode("ascii")
