"""One training step (forward of all views, losses, backward, SGD): torch.compile against eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cpn_fast.config import AugmentOptions, MethodOptions, TrainConfig, with_recipe
from cpn_fast.methods import create_method
from cpn_fast.models import create_model
from cpn_fast.optim import create_optimizer
from cpn_fast.runtime_tuning import tune_allocator

CLASSES, BATCH = 20, 4
STEPS_COMPARED, TOLERANCE = 3, 1e-4

Step = Callable[[], torch.Tensor]


def make_step(method: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[torch.Tensor, ...]) -> Step:
    def step() -> torch.Tensor:
        torch.manual_seed(0)  # the same dropout in both
        optimizer.zero_grad(set_to_none=True)
        loss = method(*inputs)["loss"]
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def random_inputs(crop: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, crop, crop, 3), generator=generator, dtype=torch.uint8)
    side = crop // 12
    rows = torch.arange(crop) // side
    patches = (rows[:, None] * (int(rows[-1]) + 1) + rows).to(torch.int32).expand(BATCH, -1, -1).contiguous()
    labels = (torch.rand(BATCH, CLASSES, generator=generator) < 0.1).float()
    labels[:, 0] = 1
    return images, patches, torch.arange(BATCH), labels


@pytest.mark.parametrize(("backbone", "crop", "name"), [("mobilenet_v2", 320, "cpn"), ("mobilenet_v2", 320, "cam")])
def test_compile_against_eager(
    backbone: Any,
    crop: int,
    name: Any,
    against: Callable[..., float],
    calibrate: Callable[[torch.nn.Module, torch.Tensor], None],
) -> None:
    tune_allocator()
    config = with_recipe(
        TrainConfig(
            "", Path(), method=name, backbone=backbone, options=MethodOptions(), augment=AugmentOptions(crop=crop)
        )
    )
    config = replace(config, lr=1e-4)
    torch.manual_seed(0)
    torch._inductor.config.fallback_random = True
    inputs = random_inputs(crop)
    steps = []
    net = create_model(config, CLASSES)
    calibrate(net, inputs[0])
    for compiled in (False, True):
        own = copy.deepcopy(net)
        method = create_method(config, own).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        runner: Any = torch.compile(method, fullgraph=True, dynamic=False) if compiled else method
        steps.append(make_step(runner, create_optimizer(own, config), inputs))
    eager, compiled_step = steps

    def agree() -> None:
        for _ in range(STEPS_COMPARED):
            expected, found = eager(), compiled_step()
            assert abs(float(found - expected)) <= TOLERANCE * max(1.0, abs(float(expected)))

    against(candidate=compiled_step, peer=eager, agree=agree, items=BATCH)
