"""`cpn review`: the page it writes and the small pictures beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpn_fast.cli import main as cli
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_labelmap, write_mask
from cpn_fast.review.command import run_review
from cpn_fast.review.items import open_masks
from cpn_fast.review.options import ReviewConfig
from cpn_fast.review.pictures import mask_bytes, photo_bytes
from tests.cpn_fast.review.example import CLASSES, EVIL, write


class Page(HTMLParser):
    """What a browser would take from a page: tags with their attributes, texts of scripts, and all other text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return write(tmp_path)


def test_the_page_holds_every_name_as_data_and_no_markup_of_it(masks: Path) -> None:
    summary = run_review(ReviewConfig(masks))
    assert (summary.written, summary.skipped, summary.failed) == (len(EVIL), 0, 0)
    page = Page(masks / "review.html")
    assert [row[0] for row in page.data["items"]] == list(EVIL)
    assert [row[2] for row in page.data["items"]] == sorted(row[2] for row in page.data["items"])
    assert [name for _, name, _ in page.data["classes"]] == list(CLASSES)
    values = [sorted({0, 255} ^ set(np.unique(np.array(Image.open(masks / "SegmentationClass" / f"{n}.png")))))
              for n in EVIL]  # fmt: skip
    assert [row[3] for row in page.data["items"]] == [[*map(int, each), 255] for each in values]
    assert len(page.scripts) == 2 and len(page.styles) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(value and "harmed" in value for _, attributes in page.tags for value in attributes.values())


def test_the_policy_allows_this_script_and_nothing_else(masks: Path) -> None:
    run_review(ReviewConfig(masks))
    page = Page(masks / "review.html")
    (policy,) = (a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == digest(page.scripts[1]) and rules["style-src"] == digest(page.styles[0])
    assert rules["img-src"] == "file: 'self'" and "unsafe" not in policy
    outside = [v for _, a in page.tags for n, v in a.items() if n in ("src", "href") and v]
    assert outside == [] and "://" not in page.scripts[1]


def test_small_pictures_show_the_image_and_the_classes_in_their_colours(masks: Path) -> None:
    run_review(ReviewConfig(masks, size=64))
    page = Page(masks / "review.html").data
    colours = {value: colour for value, _, colour in page["classes"]}
    for number, (name, key, *_) in enumerate(page["items"]):
        photo = Image.open(masks / "review-files" / f"{key}.jpg")
        assert photo.size == (60, 40), name
        np.testing.assert_allclose(np.array(photo)[20, 30], (200, 20 * number, 50), atol=4)
        overlay = np.array(Image.open(masks / "review-files" / f"{key}.webp").convert("RGBA"))
        assert overlay.shape == (40, 60, 4) and overlay[20, 10, 3] == 0 and overlay[0, 5, 3] > 150
        inside = overlay[20, 35]
        if number % 4 == 3:
            assert inside[3] == 0
        else:
            expected = [int(colours[1 + number % 3][i : i + 2], 16) for i in (1, 3, 5)]
            np.testing.assert_allclose(inside[:3], expected, atol=12)
            assert inside[3] > 150


def test_pictures_are_never_larger_and_keep_thin_parts() -> None:
    mask = np.zeros((900, 1200), np.uint8)
    mask[:, 600:604] = 1
    palette = np.full((256, 3), 7, np.uint8)
    made = np.array(Image.open(io.BytesIO(mask_bytes(mask, palette, 300))))
    assert made.shape == (225, 300, 4) and (made[:, 140:160, 3].max(axis=1) > 60).all()
    assert Image.open(io.BytesIO(mask_bytes(mask[:30, :40], palette, 300))).size == (40, 30)


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "a.jpg", exif=exif)
    assert Image.open(io.BytesIO(photo_bytes(tmp_path / "a.jpg", 100))).size == (50, 100)


def test_a_second_call_makes_only_what_has_changed(masks: Path) -> None:
    run_review(ReviewConfig(masks))
    assert run_review(ReviewConfig(masks)).skipped == len(EVIL)
    write_mask(masks / "SegmentationClass" / "plain.png", np.full((40, 60), 3, np.uint8))
    before = {path.name: path.stat().st_mtime_ns for path in (masks / "review-files").iterdir()}
    summary = run_review(ReviewConfig(masks))
    assert (summary.written, summary.skipped) == (1, len(EVIL) - 1)
    key = next(row[1] for row in Page(masks / "review.html").data["items"] if row[0] == "plain")
    changed = {n for n, t in before.items() if (masks / "review-files" / n).stat().st_mtime_ns != t}
    assert {n for n in changed if n[-4:] in ("webp", ".jpg")} == {f"{key}.webp", f"{key}.jpg"}
    (masks / "review-files" / f"{key}.webp").write_bytes(b"")  # as a power cut leaves it
    assert run_review(ReviewConfig(masks)).written == 1
    assert run_review(ReviewConfig(masks, size=100)).written == len(EVIL)
    assert sorted(p.suffix for p in (masks / "review-files").iterdir()) == sorted(
        [".jpg", ".webp"] * len(EVIL) + [".json"] * 2 + [".jsonl"]
    )


def test_the_small_pictures_are_no_masks(tmp_path: Path) -> None:
    """A folder that holds ID.png itself has its page and pictures among them."""
    masks = write(tmp_path, ("a", "b"), manifest=False)
    flat = tmp_path / "flat"
    (masks / "SegmentationClass").rename(flat)
    write_labelmap(flat / "labelmap.txt", CLASSES)
    for _ in range(2):
        run_review(ReviewConfig(flat, data=f"folder:{tmp_path / 'photos'}"))
        assert [item.id for item in open_masks(flat).items] == ["a", "b"]


def test_decisions_so_far_come_with_the_page_unless_the_mask_has_changed(masks: Path) -> None:
    run_review(ReviewConfig(masks))
    versions = {row[0]: row[5] for row in Page(masks / "review.html").data["items"]}
    (masks / "review.csv").write_text(
        f"name,decision,version\nplain,accepted,{versions['plain']}\n{EVIL[3]},rejected,\n",
        encoding="utf-8",
    )
    run_review(ReviewConfig(masks))
    page = Page(masks / "review.html")
    assert page.data["decisions"] == {"3": "rejected", "7": "accepted"}
    write_mask(masks / "SegmentationClass" / "plain.png", np.full((40, 60), 3, np.uint8))
    run_review(ReviewConfig(masks))
    page = Page(masks / "review.html")
    assert page.data["decisions"] == {"3": "rejected"}
    assert "1 decisions are of masks that have changed since" in page.text


def test_images_are_found_through_a_source_or_around_the_masks(
    masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (masks / "manifest.jsonl").read_text(encoding="utf-8").replace(f"{tmp_path}/photos", "photos")
    (masks / "manifest.jsonl").write_text(lines, encoding="utf-8")
    assert all(item.image is not None for item in open_masks(masks).items)  # beside the masks
    (tmp_path / "photos").rename(tmp_path / "moved")
    caplog.set_level("WARNING")
    assert all(item.image is None for item in open_masks(masks).items)
    assert f"images of {len(EVIL)} of {len(EVIL)} masks were not found" in caplog.text
    found = open_masks(masks, f"folder:{tmp_path / 'moved'}").items
    assert [item.image for item in found] == [tmp_path / "moved" / f"{name}.jpg" for name in EVIL]
    (tmp_path / "other").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "other" / "z.jpg")
    with pytest.raises(DataError, match=r"--data .*other: has no image of an id like .*give the source"):
        open_masks(masks, f"folder:{tmp_path / 'other'}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved").rename(tmp_path / "photos")
    run_review(ReviewConfig(masks))
    assert all(row[4] == 1 for row in Page(masks / "review.html").data["items"])


def test_masks_without_a_confidence_come_last_by_name(tmp_path: Path) -> None:
    masks = write(tmp_path, ("z", "b", "a"))
    with (masks / "manifest.jsonl").open("a", encoding="utf-8") as file:
        for name in "za":
            file.write(
                json.dumps({"id": name, "status": "ok", "image": str(tmp_path / "photos" / f"{name}.jpg")}) + "\n"
            )
    assert [(item.id, item.confidence) for item in open_masks(masks).items] == [("b", 0.5), ("a", None), ("z", None)]


def test_what_cannot_be_read_is_left_out_and_said(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (masks / "SegmentationClass" / "plain.png").write_bytes(b"no png")
    Image.new("RGB", (9, 9)).save(masks.parent / "photos" / f"{EVIL[2]}.jpg")
    assert cli.main(["review", str(masks)]) == 3
    page = Page(masks / "review.html")
    assert len(page.data["items"]) == len(EVIL) - 2 and "2 masks could not be read" in page.text
    assert cli.main(["review", str(masks), "--allow-failures"]) == 0
    for name in EVIL:
        (masks / "SegmentationClass" / f"{name}.png").write_bytes(b"no png")
    capsys.readouterr()
    assert cli.main(["review", str(masks)]) == 2
    assert "none of the 8 images could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 80}, "--port is that of --serve"),
        ({"port": 70000, "serve": True}, "--port 70000: expected a number from 0 to 65535"),
        ({"size": 5}, "--size 5: expected a number of pixels from 64 to 2048"),
        ({"workers": 0}, "--workers 0: expected at least 1"),
        ({"output": Path("page.txt")}, r"--output page.txt: expected the name of a page that ends in .html"),
        ({"data": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_options_that_do_not_fit(masks: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_review(ReviewConfig(masks, **options))
    assert not (masks / "review.html").exists()


def test_a_page_elsewhere_has_its_pictures_beside_it(masks: Path, tmp_path: Path) -> None:
    run_review(ReviewConfig(masks, output=tmp_path / "out" / "look.html"))
    data = Page(tmp_path / "out" / "look.html").data
    assert (tmp_path / "out" / data["pictures"] / f"{data['items'][0][1]}.webp").is_file()
    assert data["pictures"] == "look-files" and not (masks / "review-files").exists()


def test_a_review_of_other_masks_is_an_error_with_its_line(masks: Path) -> None:
    (masks / "review.csv").write_text("name,decision\nplain,accepted\nother,rejected\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"review.csv, line 3: 'other' has no mask in the folder"):
        run_review(ReviewConfig(masks))


def test_it_runs_without_torch(masks: Path, cpn_without_torch: Any) -> None:
    done = cpn_without_torch("review", masks)
    assert done.returncode == 0, done.stderr
    assert (masks / "review.html").is_file()
