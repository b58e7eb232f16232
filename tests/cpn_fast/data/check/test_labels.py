"""Labels and masks that are read, but from which nothing or something else is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.cli.main import main
from cpn_fast.data.check.command import check_source
from cpn_fast.data.check.labels import label_warnings, mask_warnings
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Record


def records(*labels: tuple[int, ...] | None) -> list[Record]:
    return [Record(str(number), Path(f"{number}.png"), each) for number, each in enumerate(labels)]


def test_good_labels_are_passed_in_silence() -> None:
    classes = ("cat", "traffic light", "hot-dog", "dog")
    assert label_warnings(classes, records((0,), (1, 2), (3,), (), None), "train") == []


def test_several_labels_in_one_cell() -> None:
    found = label_warnings(("bird", "cat", "cat, dog", "cat/bird", "salt/pepper"), records((2,), (2,), (3,), (1,)), "t")
    assert found[:2] == [
        "class 'cat, dog' (2 images) is one name; if it means 'cat' and 'dog', separate labels by `;`",
        "class 'cat/bird' (1 image) is one name; if it means 'cat' and 'bird', separate labels by `;`",
    ]
    assert not any("salt" in line and "one name" in line for line in found)


def test_names_that_differ_by_their_writing_alone() -> None:
    found = label_warnings(
        ("Cat", "cat", "dog", "hot dog", "hot-dog"), records((0,), (1,), (1,), (2, 3), (4,)), "train"
    )
    assert found == [
        "classes that differ by case, blanks or hyphens alone: 'Cat' (1 image), 'cat' (2 images); if they are one "
        "class, write them alike",
        "classes that differ by case, blanks or hyphens alone: 'hot dog' (1 image), 'hot-dog' (1 image); if they are "
        "one class, write them alike",
    ]


def test_nothing_can_be_learned() -> None:
    assert label_warnings(("cat",), records((0,), None), "train") == [
        "split 'train' has one image with labels: nothing can be learned from it"
    ]
    (line,) = label_warnings(("cat",), records((0,), (0,), (0,)), "train")
    assert line.startswith("class 'cat' is in every one of the 3 images of split 'train'")
    (line,) = label_warnings(("cat", "dog", "emu"), records((0,), ()), "train")
    assert line == "classes 'dog', 'emu' are in no image of split 'train': nothing can be learned about it"
    assert label_warnings(("cat",), records(None), "train") == []


def test_masks_of_0_and_255() -> None:
    pairs = [
        (record, values) for record, values in zip(records((0,), (0,), ()), [(0, 255), (0, 255), (0,)], strict=True)
    ]
    (line,) = mask_warnings(("red",), pairs)
    assert "'red' (2 images); the masks hold 0 and 255 alone, and 255 is void" in line and "write 1 where 255" in line
    assert mask_warnings(("red",), [*pairs, (records((0,))[0], (0, 1))]) == []
    (line,) = mask_warnings(("red", "blue"), [(records((1,))[0], (0, 3)), (records((0,))[0], (1,))])
    assert "'blue' (1 image); do the numbers in the masks fit the order of the classes?" in line
    assert mask_warnings(("red",), [(records((0,))[0], ())]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = ["image,labels"]
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png," + ("Cat", "cat", "dog", "background")[number])
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_strict_makes_warnings_problems(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_source(open_source(folder), measure=False)
    assert report.problems == () and any("'Cat' (1 image), 'cat' (1 image)" in line for line in report.warnings)
    assert main(["check-data", str(folder), "--split", "all"]) == 0
    out = capsys.readouterr().out
    assert "Notes (2):" in out and "  warning: " in out and "No problems found." in out
    assert main(["check-data", str(folder), "--split", "all", "--strict"]) == 1
    captured = capsys.readouterr()
    assert "Problems (2):" in captured.out and "warning: " not in captured.out and "2 problems" in captured.err


def test_no_label_at_all_is_a_problem(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "labels.csv").rename(folder / "labels.json")
    assert main(["check-data", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "none of 4 images has labels; seen there:" in out and "No problems found" not in out
    (folder / "labels.csv").write_text("image,labels\n" + "".join(f"{n}.png,background\n" for n in range(4)))
    report = check_source(open_source(folder), measure=False)
    assert any("none of 4 images has labels" in problem for problem in report.problems)
