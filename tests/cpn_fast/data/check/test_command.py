from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import cpn_fast.data.check.command as command_module
from cpn_fast.cli.main import main
from cpn_fast.data.check import estimates
from cpn_fast.data.check.command import CheckConfig, check_source, print_report, run_check
from cpn_fast.data.check.estimates import Rates, estimate
from cpn_fast.data.sources.demo import generate_demo
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_mask
from cpn_kernels import native_library


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "BACKBONE_PROBES", {"resnet38_tiny": 32})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four good images of different sizes and contents; two with a mask."""
    random = np.random.default_rng(0)
    rows = ["image,labels,split"]
    for number, (width, height) in enumerate([(40, 30), (20, 50), (60, 60), (10, 10)]):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'cat;dog' if number == 0 else 'cat'},{'train' if number < 3 else 'val'}")
        if number < 2:
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[: height // 2] = 1
            write_mask(tmp_path / "masks" / f"{number}.png", mask)
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_counts(folder: Path) -> None:
    steps: list[int] = []
    totals: list[int] = []
    report = check_source(open_source(folder), measure=False, track=steps.append, total=totals.append)
    assert report.problems == () and report.notes == ()
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, train.labelled, train.with_mask, train.per_class) == (3, 3, 2, (3, 1))
    assert (val.images, val.labelled, val.with_mask, val.per_class) == (1, 1, 0, (1, 0))
    assert set(train.sizes) == {(40, 30), (20, 50), (60, 60)}
    assert report.splits["all"].images == 4
    assert totals == [4] and sum(steps) == 4  # each image is read once, although it is in two splits


def test_every_problem_is_found_at_once(folder: Path) -> None:
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:200])
    write_mask(folder / "masks" / "0.png", np.full((2, 2), 9, dtype=np.uint8))  # broken image and broken mask
    write_mask(folder / "masks" / "1.png", np.zeros((5, 5), dtype=np.uint8))
    (folder / "2.png").write_bytes(b"")
    with (folder / "labels.csv").open("a") as file:
        file.write("gone.png,cat,train\n3.png,cat,train\n")
    report = check_source(open_source(folder), measure=False)
    expected = [
        r"labels\.csv, line 7: image '3\.png' is already on line 5",
        r"labels\.csv, line 6: image 'gone\.png' is not in",
        r"/0\.png: cannot decode the image",
        r"masks/0\.png: mask values \[9\] are no class",
        r"masks/1\.png: the mask is 5 x 5 pixels, its image .*1\.png 20 x 50",
        r"2\.png: the file is empty",
    ]
    assert len(report.problems) == len(expected), report.problems
    for pattern in expected:
        assert sum(bool(re.search(pattern, problem)) for problem in report.problems) == 1, (pattern, report.problems)
    assert report.splits["train"].with_mask == 0 and len(report.splits["train"].sizes) == 1


def test_notes_on_copies_and_on_masks_that_contradict_labels(folder: Path) -> None:
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes())
    mask = np.zeros((50, 20), dtype=np.uint8)
    mask[0, 0], mask[1, 1] = 2, 255
    write_mask(folder / "masks" / "1.png", mask)
    report = check_source(open_source(folder), measure=False)
    assert report.problems == ()
    assert report.notes == (
        f"{folder / '3.png'} shows the same picture as {folder / '2.png'}",
        "masks with classes that the image's labels lack: 1, e.g. 1 (dog); is the order of classes right?",
    )


def test_command_prints_tables_and_succeeds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(folder), "--split", "train"]) == 0
    out = capsys.readouterr().out
    for text in ("cat", "dog", "60 x 60", "superpixel cache", "labelling", "No problems found"):
        assert text in out
    assert "val" not in out.replace("mask value", "")


def test_command_fails_with_problems_and_prints_each_on_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_name = "very long name " * 10 + "[bold].png"
    with (folder / "labels.csv").open("a") as file:
        file.write(f"{long_name},cat,train\n")
    assert main(["check-data", str(folder)]) == 1
    captured = capsys.readouterr()
    assert f"  {folder / 'labels.csv'}, line 6: image {long_name!r} is not in {folder}" in captured.out
    assert "1 problem (listed above)" in captured.err


def test_max_pixels(folder: Path) -> None:
    with pytest.raises(DataError, match=r"3 problems \(listed above\)"):
        run_check(CheckConfig(data=str(folder), max_pixels=1000))  # 40 x 30, its mask, and 60 x 60


def test_demo_source(tmp_path: Path) -> None:
    root = generate_demo(tmp_path / "demo", train=3, val=2, pretrain=2, processes=1)
    report = check_source(open_source(f"demo:{root}"), measure=False)
    assert report.problems == () and report.notes == ()
    assert {name: (split.images, split.with_mask) for name, split in report.splits.items()} == {
        "train": (3, 3),
        "val": (2, 2),
        "pretrain": (2, 0),
    }


def test_a_source_without_any_readable_image(folder: Path) -> None:
    for number in range(4):
        (folder / f"{number}.png").write_bytes(b"")
    report = check_source(open_source(folder))
    assert len(report.problems) == 4 and report.rates is None
    text = io.StringIO()
    print_report(report, Console(file=text, width=100))
    assert "Problems (4):" in text.getvalue()


def test_a_split_that_cannot_be_scanned_does_not_hide_the_others(tmp_path: Path) -> None:
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    (tmp_path / "val2017").mkdir()
    report = check_source(open_source(tmp_path), measure=False)
    assert set(report.splits) == {"val2017", "val"}
    assert len(report.problems) == 1 and "instances_train2017.json: no images for it" in report.problems[0]
    with pytest.raises(DataError, match="no images for it"):
        check_source(open_source(tmp_path), "train", measure=False)


def test_estimates_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    rates = Rates(2e-6, 2.0, {"net": 1e-7}, 0.5, "a machine")
    cost = estimate([(1000, 500), (2048, 1024), (768, 100)], rates)
    pixels = 500_000 + 2_097_152 + 76_800
    # superpixels are cached at 768 pixels at most: 768 x 384, 768 x 384 and 768 x 100
    assert cost.superpixel_bytes == pytest.approx((2 * 768 * 384 + 76_800) * 2)
    assert cost.superpixel_seconds == pytest.approx((2 * 768 * 384 + 76_800) * 2e-6 / 4)
    assert cost.label_bytes == pytest.approx(pixels * 0.5)
    # 0.25 + 1 + 2.25 + 4 = 7.5 of the pixels, twice (flip); the second image is halved to 1024 x 512 first
    assert cost.label_seconds["net"] == pytest.approx((500_000 + 524_288 + 76_800) * 15 * 1e-7)


def test_rates_are_measured(folder: Path) -> None:
    rates = check_source(open_source(folder)).rates
    assert rates is not None
    assert rates.superpixel_seconds is not None and 1e-8 < rates.superpixel_seconds < 1e-2
    assert rates.superpixel_bytes is not None and 0.01 < rates.superpixel_bytes < 20
    assert 1e-9 < rates.forward_seconds["resnet38_tiny"] < 1e-2
    stored = sum((folder / "masks" / f"{number}.png").stat().st_size for number in range(2))
    assert rates.mask_bytes == pytest.approx(stored / (40 * 30 + 20 * 50))


def test_a_missing_native_library_is_said_with_its_cost(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_check(CheckConfig(data=str(folder)))
    assert "native library" not in capsys.readouterr().err
    monkeypatch.setattr(native_library, "load", lambda: (None, "no compiler"))
    run_check(CheckConfig(data=str(folder)))
    said = capsys.readouterr().err
    assert "the native library is missing: no compiler" in said and "15 times" in said


def test_without_torch_everything_but_the_costs_is_checked(
    folder: Path, cpn_without_torch: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = cpn_without_torch("check-data", folder)
    assert done.returncode == 0, done.stderr
    assert "No problems found" in done.stdout and "rough cost" not in done.stdout
    assert "cpn-fast[train]" in done.stderr


def test_split_names_that_no_command_takes_are_noted(folder: Path) -> None:
    table = folder / "labels.csv"
    lines = table.read_text().splitlines()
    names = ["split", "tran", "Train", "foo", "validation"]
    table.write_text("\n".join(line.rpartition(",")[0] + f",{name}" for line, name in zip(lines, names, strict=True)))
    notes = check_source(open_source(folder), measure=False).notes
    assert notes == (
        f"{table}: 1 images are of split 'Train', which is used only by --split Train; did you mean 'train'?",
        f"{table}: 1 images are of split 'foo', which is used only by --split foo; expected train, val or test",
        f"{table}: 1 images are of split 'tran', which is used only by --split tran; did you mean 'train'?",
        f"{table}: 1 images are of split 'validation', which is used only by --split validation; did you mean 'val'?",
        f"{table}: no image is of split 'train', which trainings take unless --split names another",
    )


def test_costs_are_not_measured_where_there_are_problems_or_nobody_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr(command_module, "measure_rates", never)
    assert main(["check-data", str(folder), "--no-estimate"]) == 0
    assert "rough cost" not in capsys.readouterr().out
    (folder / "0.png").write_bytes(b"")
    assert main(["check-data", str(folder)]) == 1
