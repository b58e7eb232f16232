from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpn_fast.cli.main import run_config
from cpn_fast.demo.command import DemoConfig, agreement_of, run_demo
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_mask


def test_agreement_by_hand(tmp_path: Path) -> None:
    first, second = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    second[0, :3] = 1
    for folder, mask in (("a", first), ("b", second)):
        write_mask(tmp_path / folder / "one.png", mask)
        write_mask(tmp_path / folder / "two.png", np.ones((1, 4), np.uint8))
    assert agreement_of(tmp_path / "a", tmp_path / "b") == pytest.approx(9 / 12)


def test_agreement_needs_the_same_masks(tmp_path: Path) -> None:
    write_mask(tmp_path / "a" / "one.png", np.zeros((2, 2), np.uint8))
    write_mask(tmp_path / "b" / "two.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="same masks"):
        agreement_of(tmp_path / "a", tmp_path / "b")
    write_mask(tmp_path / "c" / "one.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(DataError, match=r"one\.png"):
        agreement_of(tmp_path / "a", tmp_path / "c")


def test_a_folder_that_no_demo_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataError, match="no demo wrote it"):
        run_demo(DemoConfig(output=tmp_path), run_config)
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "years of work"
