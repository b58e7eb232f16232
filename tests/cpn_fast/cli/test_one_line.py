"""What a newcomer may type: one line on stderr that says what, why and what to do; nothing before it, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cpn_fast.cli.main import main
from cpn_fast.runs.folder import RunFolder


@pytest.fixture(scope="module")
def run(make_run: Callable[..., RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", "cam").path


@pytest.fixture
def masks(make_labelling: Callable[..., Path], tmp_path: Path) -> Path:
    return make_labelling(tmp_path / "masks", 2)


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line, without the words of the log; the command ends with status 2."""
    capsys.readouterr()
    assert main(words) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), shown.err
    assert "INFO" not in shown.out
    return lines[0]


def test_a_file_as_output_folder(run: Path, masks: Path, small_demo: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "there"
    file.write_text("mine")
    data = ["--data", f"demo:{small_demo}"]
    commands = {
        "label": ["label", str(run), *data, "--device", "cpu"],
        "refine": ["refine", str(masks), "--crf"],
        "evaluate": ["evaluate", str(run), *data],
        "train": ["train", *data, "--backbone", "resnet38_tiny", "--crop", "64", "--epochs", "1"],
    }
    for name, words in commands.items():
        for output in (file, file / "inner"):
            line = said_by([*words, "--output", str(output)], capsys)
            assert str(file) in line and "is a file; expected a folder" in line, name
    assert file.read_text() == "mine"


def test_a_folder_as_output_file(run: Path, masks: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "folder").mkdir()
    line = said_by(["convert", str(masks), "--format", "coco", "--output", str(tmp_path / "folder")], capsys)
    assert "is a folder; expected the name of the file" in line
    line = said_by(["report", str(run), "--images", "0", "--output", str(tmp_path / "folder")], capsys)
    assert f"{tmp_path / 'folder'}: Is a directory; " in line and "give another name" in line


def test_data_that_names_nothing(capsys) -> None:
    for name in ("", " "):
        assert "names nothing; expected a path or one of voc:PATH" in said_by(["check-data", name], capsys)


def test_comparing_what_is_not_there(masks: Path, tmp_path: Path, capsys) -> None:
    line = said_by(["compare", str(tmp_path / "nowhere"), str(masks)], capsys)
    assert f"{tmp_path / 'nowhere'}: no such folder; expected a run or a folder of masks" in line


def test_labels_of_other_classes(run: Path, masks: Path, tmp_path: Path, capsys) -> None:
    images = tmp_path / "masks images"
    (images / "labels.csv").write_text("image,labels\n0.png,sky\n1.png,street\n")
    line = said_by(["label", str(run), "--data", f"folder:{images}", "--output", str(tmp_path / "out")], capsys)
    assert "the data is of other classes, sky, street, than the run: it knows" in line and "give the run" in line
    (images / "classes.txt").write_text("red\ngreen\n")
    line = said_by(["check-data", f"folder:{images}"], capsys)
    assert "none of its 2 labels, such as 'sky', is one of the known classes, red, green" in line
    assert "correct the labels, or the list of classes (classes.txt)" in line
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_is_all_that_is_said(run: Path, small_demo: Path, tmp_path: Path, capsys) -> None:
    data = ["--data", f"demo:{small_demo}"]
    words = ["evaluate", str(run), *data, "--output", str(tmp_path / "scores"), "--scales", "0"]
    assert "--scales 0" in said_by(words, capsys)
    line = said_by(["train", *data, "--output", str(tmp_path / "run"), "--accelerator", "cpu", "--lr", "-1"], capsys)
    assert "lr" in line
