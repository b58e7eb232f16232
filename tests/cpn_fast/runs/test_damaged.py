"""A run folder whose files are cut or altered: one line that names the file, for everything that reads runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cpn_fast.files.background_score import REFINED_BETA
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def original(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "run", method="cam")


@pytest.fixture
def run(original: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may damage."""
    for path in (original.config_path, original.model_path):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return RunFolder(tmp_path)


def test_weights_cut_or_altered(run: RunFolder) -> None:
    content = run.model_path.read_bytes()
    rng = np.random.default_rng(0)
    mutations = [content[:length] for length in (0, 7, 8, 100, 3000, len(content) // 2, len(content) - 1)]
    for _ in range(40):  # in the header, which says where the tensors lie
        changed = bytearray(content)
        changed[int(rng.integers(0, 3000))] = int(rng.integers(0, 256))
        mutations.append(bytes(changed))
    refused = 0
    for mutation in mutations:
        run.model_path.write_bytes(mutation)
        try:
            run.load_model()
        except DataError as error:
            assert str(error).startswith(str(run.model_path)) and "\n" not in str(error)
            refused += 1
    assert refused > 20
    run.model_path.write_bytes(content[:1000])
    with pytest.raises(
        DataError, match=r"model\.safetensors: not a readable safetensors file .*; train the run to its"
    ):
        run.load_model()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run: RunFolder, value: float) -> None:
    weights = load_file(run.model_path)
    name = next(key for key in weights if key.endswith("classifier.weight"))
    weights[name].view(-1)[3] = value
    save_file(weights, run.model_path)
    with pytest.raises(
        DataError, match=rf"model\.safetensors: {name} of \d+ tensors hold NaN or infinity: the training"
    ):
        run.load_model()


def test_a_checkpoint_instead_of_weights(run: RunFolder) -> None:
    run.model_path.unlink()
    run.checkpoint_path.parent.mkdir()
    for content in (b"", b"PK\x03\x04", b"\x80\x04K\x01.", os.urandom(100)):
        run.checkpoint_path.write_bytes(content)
        with pytest.raises(DataError, match=r"last\.ckpt: "):
            run.load_model()
    torch.save({"format": 1, "step": 1, "config": {}, "classes": [], "model": 3, "optimizer": 0, "scaler": 0},
               run.checkpoint_path)  # fmt: skip
    with pytest.raises(DataError, match=r"last\.ckpt: does not fit the settings"):
        run.load_model()


def test_config_that_is_no_regular_file(run: RunFolder) -> None:
    run.config_path.unlink()
    os.mkfifo(run.config_path)
    with pytest.raises(DataError, match=r"config\.json: a FIFO"):
        run.load_model()


@pytest.mark.parametrize("scores", ['{"beta": "x"}', '{"beta": NaN}', '{"beta": 2}', '{"beta": true}', "[]", "{}", "{"])
def test_background_score_that_is_none(run: RunFolder, scores: str) -> None:
    assert run.beta == REFINED_BETA
    run.scores_path.write_text('{"beta": 0.4}')
    assert run.beta == 0.4
    run.scores_path.write_text(scores)
    with pytest.raises(DataError, match=r"metrics\.json"):
        _ = run.beta


def test_records_skip_what_is_none(run: RunFolder) -> None:
    good = '{"kind": "step", "step": 1, "loss": 2.0}'
    bad = [
        "{",
        "[1]",
        '{"kind": "step"}',
        '{"kind": "step", "step": "2"}',
        "[" * 100_000,
        "é".encode("latin-1").decode("latin-1"),
    ]
    run.metrics_path.write_bytes("\n".join([*bad, good]).encode() + b"\n\xff\xfe\n")
    assert run.records() == [json.loads(good)]
    run.truncate_records(0)
    assert run.metrics_path.read_bytes() == b""


def test_weights_of_another_run_say_which_differ(run: RunFolder) -> None:
    weights = load_file(run.model_path)
    kernel = weights["classifier.weight"]
    save_file({**weights, "classifier.weight": kernel[:2].contiguous()}, run.model_path)
    found, expected = "x".join(map(str, kernel[:2].shape)), "x".join(map(str, kernel.shape))
    sizes = rf"classifier\.weight: {found}, expected {expected}"
    with pytest.raises(
        DataError, match=rf"config\.json: 1 weights have another size, such as {sizes}; put back .*, or train again$"
    ):
        run.load_model()
    others = {name: value for name, value in weights.items() if name != "classifier.weight"}
    save_file({**others, "x": kernel.clone()}, run.model_path)
    with pytest.raises(DataError, match=r": 1 weights are missing, such as classifier\.weight; 1 are unknown"):
        run.load_model()
