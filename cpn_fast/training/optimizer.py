"""SGD as the paper's family trains: parameter groups by role, polynomial schedule, an update that a flag can skip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cpn_fast.config.training import TrainingConfig
from cpn_fast.models.backbones import Backbone

REFINEMENT_HEADS = frozenset({"f_mid", "f_high", "f9", "phi"})


def parameter_groups(net: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning-rate factor and weight decay; frozen ones are left out.

    Backbone weights learn at the base rate, new layers at `config.lr_factors` times it ("head" for the classifier and
    all that has no name of its own, "refinement" for the refinement heads, "pixels" for the pixel head), biases of new
    layers at twice that. No bias decays.

    Args:
        net: a network whose backbone is the submodule `backbone`.
        config: `lr_factors` and `weight_decay` are used.

    Returns:
        non-empty groups with keys `name`, `params`, `factor` (of the base rate) and `weight_decay`.
    """
    rules: dict[str, tuple[float, float]] = {}
    for role, factor in config.lr_factors.items():
        rules[role] = (factor, config.optimizer.weight_decay)
        rules[f"{role} biases"] = (factor if role == "backbone" else 2 * factor, 0.0)
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rules}
    backbones = (module for module in net.modules() if isinstance(module, Backbone))
    undecayed = {id(parameter) for backbone in backbones for parameter in backbone.undecayed()}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            first = name.split(".")[0]
            role = first if first in ("backbone", "pixels") else "refinement" if first in REFINEMENT_HEADS else "head"
            decays = not name.endswith("bias") and id(parameter) not in undecayed
            members[role if decays else f"{role} biases"].append(parameter)
    return [
        {"name": name, "params": members[name], "factor": factor, "weight_decay": decay}
        for name, (factor, decay) in rules.items()
        if members[name]
    ]


def create_optimizer(net: nn.Module, config: TrainingConfig) -> torch.optim.SGD:
    """SGD over `parameter_groups`, fused, so that its `found_inf` flag can skip an update on the device.

    Momentum buffers start at zero rather than at the first gradient's copy: the same numbers, and a first step that is
    held back leaves no uninitialised memory behind.

    Raises:
        ValueError: if `config.optimizer.lr` or `config.optimizer.momentum` is None (fill them with `with_recipe`).
    """
    given = config.optimizer
    if given.lr is None or given.momentum is None:
        raise ValueError("lr and momentum must be set; with_recipe fills them from the backbone's recipe")
    optimizer = torch.optim.SGD(parameter_groups(net, config), lr=given.lr, momentum=given.momentum, fused=True)
    if given.momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def poly_factor(step: int, total_steps: int, power: float) -> float:
    """(1 - step / total_steps) ** power, the schedule's factor of the learning rate at `step` (from 0)."""
    return max(0.0, 1.0 - step / total_steps) ** power


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its factor times `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def skip_update(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Let the coming fused update pass or skip it. `skip` is a float32 scalar on the device, 1 = skip."""
    optimizer.found_inf = skip  # type: ignore[attr-defined]
