"""The page of `cpn check-data --html`: parsed again, with names that would break out of it."""

from __future__ import annotations

import base64
import io
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.cli.main import main
from cpn_fast.data.check import command
from cpn_fast.data.check.command import check_source
from cpn_fast.data.check.page import PER_CLASS, SIDE, write_page
from tests.exports import opened, write

NASTY = '<script>alert("&")</script>'


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of two classes, one of a name that is HTML; one row names no image."""
    rows = "".join(f"{number}.png;{'cat' if number % 2 else NASTY.replace(';', '')}\n" for number in range(12))
    files = {f"{number}.png": np.full((300, 400, 3), 20 * number, np.uint8) for number in range(12)}
    return write(tmp_path / "data", {"labels.csv": f"image;labels\n{rows}gone.png;cat\n", **files})


def test_the_page_is_complete_and_escaped(folder: Path, tmp_path: Path) -> None:
    source = opened(folder)
    report = check_source(source, measure=False)
    write_page(tmp_path / "deep" / "page.html", report, source)
    page = Parsed((tmp_path / "deep" / "page.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and NASTY in page.text
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert len(page.images) == 2 * PER_CLASS
    assert "image 'gone.png' is not in" in page.text and "Problems (1)" in page.text
    for table in ("The first rows, as understood", "Splits", "Images per class"):
        assert table in page.text
    picture = Image.open(io.BytesIO(base64.b64decode((page.images[0]["src"] or "").partition(",")[2])))
    assert picture.size == (SIDE, SIDE * 300 // 400) and page.images[0]["width"] == str(SIDE)


def test_the_command_writes_it_also_with_problems(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_rates", lambda *_: None)
    page = tmp_path / "page.html"
    assert main(["check-data", str(folder), "--html", str(page)]) == 1
    assert "gone.png" in page.read_text(encoding="utf-8")
    assert "1 problem (listed above)" in capsys.readouterr().err
    (folder / "labels.csv").write_text("image;labels\n0.png;cat\n1.png;dog\n")
    assert main(["check-data", str(folder), "--html", str(page)]) == 0
    assert "gone.png" not in page.read_text(encoding="utf-8")


def test_without_jinja_nothing_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["check-data", str(folder), "--html", str(tmp_path / "page.html")]) == 2
    assert "pip install 'cpn-fast[report]'" in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_is_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "0.png").write_bytes(b"x")
    source = opened(folder)
    write_page(tmp_path / "page.html", check_source(source, measure=False), source)
    page = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.images) == 2 * PER_CLASS - 1 and "0.png: not an image" in page.text
