"""What a training is said to take, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cpn_fast.config.training import AugmentOptions, LoopOptions, TrainConfig
from cpn_fast.training.cost import OVERHEAD, PROCESS_BYTES, Cost, duration, estimate_cost, say_cost


class Toy(nn.Module):
    """Keeps for its backward pass the image (3 channels) and the ReLU's output (4), float32, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.conv(images))


@pytest.mark.parametrize(("crop", "batch", "views"), [(448, 8, 3.0), (256, 6, 1.0), (40, 2, 1.09)])
def test_memory_goes_with_the_pixels(crop: int, batch: int, views: float) -> None:
    config = TrainConfig(data="", output=Path(), loop=LoopOptions(batch_size=batch), augment=AugmentOptions(crop=crop))
    stage = SimpleNamespace(config=config, views=lambda: (views, views))
    net = Toy().train()
    cost = estimate_cost(stage, net, torch.device("cpu"), world_size=2)  # type: ignore[arg-type]
    weights = 3 * 16 * 4  # 16 numbers of 4 bytes, their gradients and momenta
    kept = crop**2 * (batch // 2) * views * (3 + 4) * 4
    assert cost.memory == pytest.approx(PROCESS_BYTES + weights + kept * OVERHEAD, rel=1e-6)
    assert cost.seconds is not None and cost.seconds >= 0
    assert net.training and net.conv.weight.grad is None


def test_too_little_memory_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        say_cost(Cost(2.0**30, 36.0), 300, torch.device("cpu"))
        say_cost(Cost(2.0**60, None), 300, torch.device("cpu"))
    first, second = caplog.records
    assert first.levelname == "INFO" and "about 3.0 h for 300 steps and 1.0 GiB" in first.getMessage()
    assert second.levelname == "WARNING" and "lower --batch-size or --crop" in second.getMessage()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h"), (10**6, "12 days")]
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_else_the_machine_does_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass on an idle machine takes its pixels / 1e6 s; the first two of each size are held up by 10 s."""
    clock, passes = [0.0], [0]

    class Timed(Toy):
        def forward(self, images: Tensor) -> Tensor:
            passes[0] += 1
            clock[0] += images.shape[2] ** 2 / 1e6 + (10 if passes[0] not in (4, 7) else 0)
            return super().forward(images)

    monkeypatch.setattr("cpn_fast.training.cost.time.perf_counter", lambda: clock[0])
    config = TrainConfig(data="", output=Path(), loop=LoopOptions(batch_size=3), augment=AugmentOptions(crop=200))
    stage = SimpleNamespace(config=config, views=lambda: (2.0, 3.0))
    cost = estimate_cost(stage, Timed(), torch.device("cpu"), world_size=1)  # type: ignore[arg-type]
    assert cost.seconds == pytest.approx(3 * 2 * 200**2 / 1e6)
