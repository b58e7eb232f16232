"""Runs the Triton kernels' tests in the interpreter, one fresh process per file: it is chosen before Triton loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "triton"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def test_every_operator_has_a_file() -> None:
    operators = (
        "augmented_crop",
        "cp_loss",
        "cp_triplet",
        "dense_crf",
        "patch_crop",
        "pixel_correlation",
        "random_walk",
    )
    assert {f"test_{name}_kernel.py" for name in operators} == set(FILES)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(name: str, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER / name), "-q", "-p", "no:cacheprovider", "--rootdir", repository],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert re.search(r"\b[1-9]\d* passed", summary) and "skipped" not in summary, summary
