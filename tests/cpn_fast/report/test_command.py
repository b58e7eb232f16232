from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_mask
from cpn_fast.files.palette import page_palette
from cpn_fast.report.command import ReportConfig, run_report
from cpn_fast.report.pictures import heat
from cpn_fast.runs.folder import RunFolder

VOID_ELEMENTS = {"meta", "img", "br", "line", "polyline", "circle", "rect"}
MakeRun = Callable[..., RunFolder]


class Page(HTMLParser):
    """Collects what a test asks for and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.headers: list[str] = []
        self.images = 0
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.images += tag == "img"
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_ELEMENTS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] == "th":
            self.headers.append(data)


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", text), "the page would load something"
    page = Page(text)
    assert all(link.startswith("data:image/") for link in page.links)
    return page


def record(kind: str, step: int, **values: Any) -> str:
    return json.dumps({"kind": kind, "step": step, **values})


def add_records(run: RunFolder) -> None:
    lines = [
        record("step", i, epoch=0, loss=2.0 / i, cls=1.0 / i, lr=0.01, seconds=0.5, images_per_second=8.0,
               peak_memory_mib=512.0)
        for i in range(1, 5)
    ]  # fmt: skip
    lines += [
        record("eval", 2, epoch=1, cam_miou=0.31, rcam_miou=None, map=0.5, f1=0.4),
        record("eval", 4, epoch=2, cam_miou=0.42, rcam_miou=0.47, map=0.6, f1=0.5),
        record("maps", 4, cam={"area": [0.25, None], "mean": [0.1, None], "min": [0.0, None]}),
    ]
    run.metrics_path.write_text("\n".join(lines) + '\n{"torn', encoding="utf-8")


def values_of(miou: float) -> dict[str, Any]:
    per_class = {"background": 0.8, **dict.fromkeys(("ring", "plus"), miou)}
    sweep = {name: [0.1, miou, 0.2] for name in ("miou", "background", "foreground")}
    point = {"miou": miou, "beta": 0.3, "background": 0.8, "foreground": miou}
    return {**point, "per_class": per_class, "sweep": {"beta": [0.0, 0.3, 1.0], **sweep}}


def scores() -> dict[str, Any]:
    results = {name: {"1": values_of(value), "multi": values_of(value + 0.05)} for name, value in MAPS.items()}
    return {**results["rcam"]["multi"], "map": "rcam", "images": 6, "split": "val", "data": "demo:", "results": results}


MAPS = {"cam": 0.4, "rcam": 0.45}


def test_full_page_shows_every_part(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_records(run)
    run.scores_path.write_text(json.dumps(scores()), encoding="utf-8")
    output = run_report(ReportConfig(run.path, images=2, scales=(1.0,), flip=False, device="cpu"))
    assert output == run.path / "report.html"
    page = read(output)
    assert page.headers == ["image", "ground truth", "CAM", "RCAM", "mask"]
    assert page.images == 2 * 5
    text = " ".join(page.words)
    for part in ("Scores", "Learning curves", "Training", "Settings", "IoU per class", "best 0.30", "options.ohem"):
        assert part in text
    assert "50.0" in page.words, "the metric shown is the multi-scale mIoU in percent"
    assert "No scores" not in text and "No pictures" not in text


def test_every_part_of_the_loss_that_was_recorded_has_its_curve(make_run: MakeRun, tmp_path: Path) -> None:
    """Those of `cpn train --pixel-masks` with min pooling: what the methods return, not what a page thinks of."""
    run = make_run(tmp_path / "run")
    parts = {"loss": 4.0, "cls": 1.0, "tcp": 0.1, "cpcr": 0.5, "min_pool": 0.1, "pixels": 2.3}
    about = {"epoch": 0, "lr": 0.01, "seconds": 0.5, "images_per_second": 8.0, "peak_memory_mib": 512.0}
    run.metrics_path.write_text("\n".join(record("step", i, **parts, **about) for i in (1, 2, 3)) + "\n")
    text = run_report(ReportConfig(run.path, images=0, device="cpu")).read_text(encoding="utf-8")
    figure = re.search(r"<figcaption>Losses</figcaption>(.*?)</figure>", text, re.DOTALL)
    assert figure
    assert set(re.findall(r">([^<]+)</text>", figure[1])) & {*parts, "er", "ecr"} == parts.keys()


@pytest.mark.parametrize(("method", "curves"), [("cam", ["CAM"]), ("cpn", ["CAM", "RCAM"])])
def test_learning_curves_are_those_of_maps_that_the_network_has(
    method: str, curves: list[str], make_run: MakeRun, tmp_path: Path
) -> None:
    """Records of an earlier version hold RCAM's figures for a plain CAM, too."""
    run = make_run(tmp_path / "run", method=method, weights=False)
    add_records(run)
    text = run_report(ReportConfig(run.path, device="cpu")).read_text(encoding="utf-8")
    figure = re.search(r"<figcaption>mIoU of the maps</figcaption>(.*?)</figure>", text, re.DOTALL)
    assert figure
    assert [name for name in re.findall(r">([^<]+)</text>", figure[1]) if name in ("CAM", "RCAM")] == curves


def test_run_with_nothing_but_settings_says_what_is_missing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", weights=False)
    page = read(run_report(ReportConfig(run.path, output=tmp_path / "there" / "page.html", device="cpu")))
    text = " ".join(page.words)
    assert page.images == 0
    for part in ("No pictures", "No scores", "No training records", "Settings", "cpn evaluate"):
        assert part in text


def test_without_torch_the_page_has_all_but_the_pictures(
    make_run: MakeRun, tmp_path: Path, cpn_without_torch: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run = make_run(tmp_path / "run")
    add_records(run)
    done = cpn_without_torch("report", run.path)
    assert done.returncode == 0, done.stderr
    page = read(run.path / "report.html")
    assert page.images == 0 and any("cpn-fast[train]" in word for word in page.words)
    assert any("batch_size" in word for word in page.words), "the settings"


def test_data_without_masks_has_no_ground_truth_column(make_run: MakeRun, small_demo: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(small_demo / "JPEGImages" / "train_0000.jpg", photos / "one.jpg")
    (photos / "labels.csv").write_text("image,labels,split\none.jpg,ring;plus,train\n", encoding="utf-8")
    run = make_run(tmp_path / "run", method="cam")
    values = {"data": f"folder:{photos}", "scales": (1.0,), "flip": False, "device": "cpu"}
    page = read(run_report(ReportConfig(run.path, refine="none", **values)))
    assert page.headers == ["image", "CAM", "mask"], "without refinement there is no RCAM, this data has no masks"
    refined = read(run_report(ReportConfig(run.path, **values)))
    assert refined.headers == ["image", "CAM", "RCAM", "mask"]
    assert "The data has no ground truth." in " ".join(page.words)


def test_damaged_scores_are_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", weights=False)
    run.scores_path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.json"):
        run_report(ReportConfig(run.path))


def test_stored_masks_replace_the_networks_own(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    config = ReportConfig(run.path, images=1, scales=(1.0,), flip=False, device="cpu")
    before = run_report(config).read_text(encoding="utf-8")
    mask = np.full((8, 8), 3, np.uint8)
    mask[::2] = 5
    write_mask(tmp_path / "masks" / "SegmentationClass" / "val_0000.png", mask)
    after = run_report(ReportConfig(**{**vars(config), "masks": tmp_path / "masks"})).read_text(encoding="utf-8")
    pictures = [re.findall(r'<img src="([^"]+)" alt="(\w+)', text) for text in (before, after)]
    changed = [alt for (first, alt), (second, _) in zip(*pictures, strict=True) if first != second]
    assert changed == ["mask"]


def test_heat_of_one_class_by_hand() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    maps = np.array([[[0.0, 1.0]]], np.float32)
    out = heat(image, np.array([4]), maps)
    assert out[0, 0].tolist() == [60, 60, 60]
    assert out[0, 1].tolist() == (0.15 * 60 + 0.85 * page_palette()[5]).astype(np.uint8).tolist()


def test_heat_without_classes_is_the_dimmed_image() -> None:
    out = heat(np.full((2, 2, 3), 50, np.uint8), np.array([], np.intp), np.zeros((0, 2, 2), np.float32))
    assert (out == 30).all()


def test_page_colours_are_distinct() -> None:
    assert len(np.unique(page_palette(), axis=0)) == 256
