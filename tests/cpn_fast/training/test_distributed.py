"""Two gloo processes under torchrun compute what one process does at the same global batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cpn_fast.cam.options import parse
from cpn_fast.cam.task import run_train
from cpn_fast.models.backbones import resnet38
from cpn_fast.runs.checkpoint import load_checkpoint
from cpn_fast.runs.folder import RunFolder

WITHOUT_DROPOUT = """
import sys
from cpn_fast.models.backbones import resnet38

init = resnet38.BottleneckBlock.__init__
resnet38.BottleneckBlock.__init__ = lambda self, *args, dropout, **options: init(self, *args, dropout=0.0, **options)
"""
MAIN = """
from cpn_fast.train import main

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize(("warm_up", "parts"), [("0", ("tcp", "cpcr")), ("0.34", ())])
@pytest.mark.slow
def test_gradients_equal_single_process(
    warm_up: str, parts: tuple[str, ...], small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step with momentum and no decay: the momentum buffers then are the gradients."""
    arguments = ["--data", f"demo:{small_demo}", "--method", "cpn", "--backbone", "resnet38_tiny", "--crop", "64"]
    arguments += [
        "--batch-size",
        "4",
        "--lr",
        "0.01",
        "--epochs",
        "1",
        "--max-steps",
        "1",
        "--workers",
        "0",
        "--patch",
        "grid",
    ]
    arguments += ["--options.dropout", "0", "--weight-decay", "0", "--eval-every", "0", "--accelerator", "cpu"]
    arguments += ["--patch.grid-sides", "112", "224", "--options.warm-up", warm_up]
    script = tmp_path / "train_without_dropout.py"
    script.write_text(WITHOUT_DROPOUT + MAIN)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        + [*arguments, "--output", str(tmp_path / "pair")],
        check=True, timeout=240,
    )  # fmt: skip
    monkeypatch.setattr(resnet38.BottleneckBlock, "__init__", resnet38.BottleneckBlock.__init__)  # put back afterwards
    exec(WITHOUT_DROPOUT, {})
    single = run_train(parse([*arguments, "--output", str(tmp_path / "single")]))
    pair = RunFolder(tmp_path / "pair")

    gradients = []
    for run in (single, pair):
        state = load_checkpoint(run.checkpoint_path)
        assert state["step"] == 1
        gradients.append([item["momentum_buffer"] for item in state["optimizer"]["state"].values()])
    assert len(gradients[0]) == len(gradients[1]) > 30
    heads = 3  # f_mid, f_high, f9: they learn nothing in the warm-up
    assert sum(bool(expected.any()) for expected in gradients[0]) == len(gradients[0]) - (0 if parts else heads)
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())

    (one,), (two,) = (run.records("step") for run in (single, pair))
    assert all(one[name] > 0.01 for name in parts) and ("tcp" in one) == bool(parts)
    for name in ("loss", "cls", *parts, "grad_norm"):
        assert abs(one[name] - two[name]) <= 1e-5 * abs(one[name])
