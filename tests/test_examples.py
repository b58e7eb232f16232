"""The scripts in examples/ run, in their order, and say what they are there to say."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

WITHOUT_TORCH = """
import runpy, sys
blocked = ("torch", "onnx", "onnxscript", "lightning_fabric", "triton", "skimage", "scipy", "cv2")
sys.modules.update(dict.fromkeys(blocked))
sys.modules.pop("torch")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("blocked: torch", name="torch")
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples") / "out"


@pytest.fixture
def example(
    repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> object:
    """Run a script as `python examples/NAME.py FOLDER` would, in this process; gives what it prints."""

    def run(name: str) -> str:
        path = repository / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), str(folder)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_examples_are_these_and_the_readme_names_them_all(repository: Path) -> None:
    names = sorted(path.name for path in (repository / "examples").glob("*.py"))
    assert [name[:2] for name in names] == ["01", "02", "03", "04", "05", "06"]
    text = (repository / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"python examples/{name}" in text for name in names)


def test_own_backbone(example) -> None:  # type: ignore[no-untyped-def]
    said = example("04_own_backbone")
    assert "class activation maps (4, 2, 4, 6)" in said and "refined by pixel correlation (4, 2, 4, 6)" in said
    assert "23584 weights of the backbone" in said  # 9 * (3 * 16 + 16 * 32 + 32 * 64) + (16 + 32 + 64), norms frozen


def test_operators(example) -> None:  # type: ignore[no-untyped-def]
    said = example("05_operators")
    assert "I_h + I_hbar = I: True" in said and "still sum to 1.0" in said


@pytest.mark.slow
def test_from_training_to_labelling_without_torch(example, repository: Path, folder: Path) -> None:  # type: ignore[no-untyped-def]
    said = example("01_train")
    assert "train_0000.jpg shows" in said and "losses [" in said
    said = example("02_label_a_photo")
    assert "mask (128, 128) uint8" in said and "maps of ('bars', 'wedge') (2, 128, 128)" in said
    said = example("03_score_and_convert")
    assert "6 masks written, 0 up to date, 0 failed" in said and "mIoU" in said and "objects" in said
    script = str(repository / "examples" / "06_without_torch.py")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, script, str(folder)],
        capture_output=True, text=True, check=False, timeout=300, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "data" / "JPEGImages" / "val_0001.jpg") as photo:
        width, height = photo.size
    assert f"mask ({height}, {width})" in done.stdout and "22 masks written" in done.stdout
    assert "torch was imported: False" in done.stdout
