"""Every command on a disk that is full, or may not be written to: one clear line, no half file, and then it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from cpn_export import to_onnx
from cpn_fast.cli import main as cli
from cpn_fast.runs.folder import RunFolder


def tiny_graph() -> ir.Model:
    """A valid ONNX model with 100 kB of weights."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [25_000])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [25_000])
    weights = onnx.numpy_helper.from_array(np.ones(25_000, np.float32), "weights")
    node = onnx.helper.make_node("Add", ["x", "weights"], ["y"])
    return ir.serde.deserialize_model(
        onnx.helper.make_model(onnx.helper.make_graph([node], "tiny", [value], [result], [weights]))
    )


SMALL = ["--scales", "1", "--no-flip"]


class Disk:
    """A file system in memory whose size can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self) -> bool:
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def fill(self, leave: int) -> None:
        """Fill it up to `leave` bytes."""
        filler = self.path / "filler"
        filler.write_bytes(bytes(max(0, shutil.disk_usage(self.path).free - leave)))

    def empty(self) -> None:
        (self.path / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    if shutil.which("mount") is None or not hasattr(os, "geteuid") or os.geteuid() != 0 or not made.mount():
        pytest.skip("needs the right to mount a tmpfs")
    yield made
    subprocess.run(["umount", "-l", str(made.path)], check=True)


def training(small_demo: Path, output: Path, *more: str) -> list[str]:
    words = ["train", "--data", f"demo:{small_demo}", "--output", str(output), "--method", "cam", "--patch", "grid"]
    words += ["--backbone", "resnet38_tiny", "--crop", "64", "--batch-size", "4", "--epochs", "2", "--eval-every", "0"]
    return [*words, "--workers", "0", "--checkpoint-every", "2", *more]


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    capsys.readouterr()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    last = " ".join(error[error.rindex("error: ") :].split())
    for part in parts:
        assert part in last


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".tmp-*")]


@pytest.mark.slow
def test_training_keeps_its_last_checkpoint(small_demo: Path, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(disk.path / "run")
    assert cli.main(training(small_demo, run.path, "--max-steps", "2")) == 0
    before = run.checkpoint_path.read_bytes()
    disk.fill(leave=100_000)  # a checkpoint has 3 MB
    again = training(small_demo, run.path, "--resume", "--max-steps", "6")
    refused(again, capsys, str(run.path), "No space left", "free disk space")
    assert run.checkpoint_path.read_bytes() == before
    assert temporary_files(run.path) == []
    disk.empty()
    assert cli.main(again) == 0
    assert [record["step"] for record in run.records("step")] == [1, 2, 3, 4, 5, 6]


def commands(run: Path, masks: Path, data: str, disk: Path) -> dict[str, tuple[list[str], Path]]:
    """Name -> command and a file that it writes."""
    out = disk / "out"
    return {
        "label": (["label", str(run), "--data", data, "--split", "val", "--output", str(out), *SMALL[:2]],
                  out / "labelmap.txt"),
        "evaluate": (["evaluate", str(run), "--data", data, "--split", "val", "--output", str(out), *SMALL],
                     out / "metrics.json"),
        "postprocess": (["postprocess", str(masks), "--crf", "--output", str(out)], out / "labelmap.txt"),
        "convert": (["convert", str(masks), "--format", "coco", "--output", str(out / "masks.json")],
                    out / "masks.json"),
        "export": (["export", str(run), "--output", str(out / "model.onnx"), *SMALL], out / "model.onnx"),
        "report": (["report", str(run), "--output", str(out / "page.html"), "--images", "1"], out / "page.html"),
    }  # fmt: skip


NAMES = ("label", "evaluate", "postprocess", "convert", "export", "report")


@pytest.fixture(scope="module")
def labelled(
    small_demo: Path, tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., RunFolder]
) -> tuple[Path, Path]:
    """A run and its masks of the val split."""
    root = tmp_path_factory.mktemp("labelled")
    run, masks = make_run(root / "run").path, root / "masks"
    words = ["label", str(run), "--data", f"demo:{small_demo}", "--split", "val", "--output", str(masks)]
    assert cli.main([*words, "--soft-maps", *SMALL]) == 0
    return run, masks


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_full_and_a_locked_disk(
    name: str,
    small_demo: Path,
    disk: Disk,
    labelled: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Tracing takes many seconds, and what is written of its result is all that counts here.
    monkeypatch.setattr(to_onnx, "labeller_graph", lambda *_: tiny_graph())
    words, made = commands(*labelled, f"demo:{small_demo}", disk.path)[name]
    disk.fill(leave=0)
    refused(words, capsys, str(disk.path), "free")
    assert not made.exists()
    assert temporary_files(disk.path) == []
    disk.empty()
    disk.remount("ro")
    refused(words, capsys, str(disk.path), "permissions")
    disk.remount("rw")
    assert cli.main(words) == 0
    assert made.stat().st_size > 0
