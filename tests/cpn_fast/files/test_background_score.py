from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpn_fast.files.background_score import DEFAULT_BETA, background_score, check_score
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.refine.labelled_folder import LabelledFolder
from cpn_fast.runs.folder import RunFolder


@pytest.mark.parametrize("value", [0, 1, 0.3])
def test_numbers_in_0_to_1(value: float) -> None:
    assert check_score(value, "--beta") == value


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), True, "0.3", None, [0.3]])
def test_anything_else_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(DataError, match=r"here: key beta: found .*, expected a number in 0\.\.1"):
        check_score(value, "here: key beta")


def test_the_given_one_goes_first() -> None:
    assert background_score(0.4, 0.3, "file") == 0.4
    assert background_score(None, 0.3, "file") == 0.3
    assert background_score(0.4, "nonsense", "file") == 0.4
    with pytest.raises(DataError, match="--beta 4: expected"):
        background_score(4, 0.3, "file")
    with pytest.raises(DataError, match=r"file: found None, expected a number in 0\.\.1; give --beta"):
        background_score(None, None, "file")


def labelled(path: Path, beta: object) -> LabelledFolder:
    return LabelledFolder(MaskFolder.at(path), (), ("cat",), {"beta": beta}, {})


def test_runs_and_labellings_have_the_same_rule(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    folder = labelled(tmp_path, 0.3)
    assert (run.background_score(), run.background_score(0.4)) == (DEFAULT_BETA, 0.4)
    assert (folder.beta(None), folder.beta(0.4)) == (0.3, 0.4)
    run.scores_path.write_text(json.dumps({"beta": "high"}))
    assert run.background_score(0.4) == 0.4
    for ask in (run.background_score, labelled(tmp_path, "high").beta):
        with pytest.raises(DataError, match=r"key beta: found .*high.*; give --beta"):
            ask(None)
        with pytest.raises(DataError, match=r"--beta 1\.5: expected a number"):
            ask(1.5)
