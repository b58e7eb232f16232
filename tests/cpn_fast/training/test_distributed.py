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
    folder, *arguments = sys.argv[1:]
    for warm_up in WARM_UPS:  # in one pair of processes: loading torch takes them longest
        if main([*arguments, "--options.warm-up", warm_up, "--output", f"{folder}/{warm_up}"]) != 0:
            sys.exit(1)
"""
WARM_UPS = {"0": ("tcp", "cpcr"), "0.34": ()}
"""Its share of the steps, and the losses that are added to the classification's in the first of them."""


@pytest.fixture(scope="module")
def arguments(small_demo: Path) -> list[str]:
    """One step with momentum and no decay: the momentum buffers then are the gradients."""
    text = f"""
        --data demo:{small_demo} --method cpn --backbone resnet38_tiny --crop 64 --batch-size 4 --lr 0.01 --epochs 1
        --max-steps 1 --workers 0 --patch grid --patch.grid-sides 112 224 --options.dropout 0 --weight-decay 0
        --eval-every 0 --accelerator cpu
    """
    return text.split()


@pytest.fixture(scope="module")
def pairs(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of two processes for every warm-up."""
    folder = tmp_path_factory.mktemp("pairs")
    script = folder / "train_without_dropout.py"
    script.write_text(f"{WITHOUT_DROPOUT}\nWARM_UPS = {list(WARM_UPS)}\n{MAIN}")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        + [str(folder), *arguments],
        check=True, timeout=240,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("warm_up", WARM_UPS)
@pytest.mark.slow
def test_gradients_equal_single_process(
    warm_up: str, pairs: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = WARM_UPS[warm_up]
    monkeypatch.setattr(resnet38.BottleneckBlock, "__init__", resnet38.BottleneckBlock.__init__)  # put back afterwards
    exec(WITHOUT_DROPOUT, {})
    single = run_train(parse([*arguments, "--options.warm-up", warm_up, "--output", str(tmp_path / "single")]))
    pair = RunFolder(pairs / warm_up)

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
