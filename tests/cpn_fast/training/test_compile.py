"""--compile: no graph break in network and loss, and eager's losses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from cpn_fast.cam.task import run_train
from cpn_fast.config.presets import PRESETS
from cpn_fast.config.training import (
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    OptimizerOptions,
    PatchOptions,
    TrainConfig,
    replace_dotted,
)
from cpn_fast.methods import create_method
from cpn_fast.models import build, create_model
from tests.mini_backbone import Mini

CASES = {
    "cam": {"method": "cam"},
    "seam": {"method": "seam"},
    "seam_prcm": {"method": "seam_prcm"},
    "cpn": {"method": "cpn"},
    "cpn paper": {"method": "cpn", **PRESETS["paper"]},
    "cpn released": {"method": "cpn", **PRESETS["released"]},
    "seam released": {"method": "seam", **PRESETS["released"]},
    "cpn union": {"method": "cpn", "options": MethodOptions(tcp_target="union", pair_norm="image")},
    "cpn other": {"method": "cpn", "options": MethodOptions(pair_norm="shared", ohem=1.0, pcm=False, cpcr=False)},
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    patches = torch.randint(0, 9, (2, 64, 64), dtype=torch.int32, generator=generator)
    return images, patches, torch.tensor([3, -4]), torch.tensor([[1.0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("case", CASES)
def test_one_graph_without_breaks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method: dynamo captures one graph, and nothing falls back. The paper's method on the real small network,
    the others on three convolutions: that backbones have no breaks has tests of its own."""
    if case != "cpn paper":
        monkeypatch.setattr(build, "create_backbone", lambda name, frozen, **_: Mini())
    config = replace_dotted(TrainConfig(data="x", output=Path("x"), backbone="resnet38_tiny"), dict(CASES[case]))
    torch.manual_seed(0)
    method = create_method(config, create_model(config, 3)).train()
    compiled = torch.compile(method, backend="eager", dynamic=False)  # not fullgraph: breaks are counted
    torch.manual_seed(1)
    expected = method(*batch())
    torch.manual_seed(1)
    found = compiled(*batch())
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found["loss"], expected["loss"])


@pytest.mark.slow
def test_losses_equal_eager(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps of a whole run with dropout on, through the default compiler, to 1e-4."""
    monkeypatch.setattr(build, "create_backbone", lambda name, frozen, **_: Mini())
    eager = TrainConfig(
        data=f"demo:{small_demo}", output=tmp_path / "eager", backbone="resnet38_tiny",
        loop=LoopOptions(batch_size=2, epochs=2, max_steps=5, eval_every=0),
        optimizer=OptimizerOptions(lr=0.01),
        device=DeviceOptions(accelerator="cpu", workers=0), augment=AugmentOptions(crop=32),
        patch=PatchOptions(kind="grid"), options=MethodOptions(warm_up=0.17),  # 2 of 12 steps
    )  # fmt: skip
    compiled = replace(eager, output=tmp_path / "compiled", device=replace(eager.device, compile="on", trial_step="on"))
    records = [run_train(config).records("step") for config in (eager, compiled)]
    # Of the warm-up and of every loss: the step tried out is no graph of its own.
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    for name, steps in (("loss", 5), ("cls", 5), ("tcp", 3), ("cpcr", 3)):
        losses = [[record[name] for record in run if name in record] for run in records]
        assert len(losses[0]) == steps
        assert losses[1] == pytest.approx(losses[0], abs=1e-4, rel=0)
    assert records[0][0]["loss"] != pytest.approx(records[0][4]["loss"], abs=1e-3)  # it did train
