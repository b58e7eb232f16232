"""One step that is thrown away: what does not compile, or fit into memory, shows before a run has begun."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cpn_fast.device import peak_memory_mib
from cpn_fast.fabric import Fabric
from cpn_fast.files.errors import DataError
from cpn_fast.training.compilation import ModeChoice, begin_pass, compile_tried

log = logging.getLogger(__name__)

Inputs = tuple[Any, ...]


@contextmanager
def untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put back after the block what a step moves: random numbers, buffers, gradients, the training mode.

    Weights that learn move with the optimizer alone; others, such as a teacher's, may in the forward pass.
    """
    generators = [device] if device.type == "cuda" else []
    fixed = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    moved = [(tensor, tensor.detach().clone()) for tensor in (*module.buffers(), *fixed)]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    modes = [(part, part.training) for part in module.modules()]
    for parameter, _ in gradients:
        parameter.grad = None
    with torch.random.fork_rng(generators):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in moved:
                    tensor.copy_(before)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for part, training in modes:
                part.training = training


def trial_step(module: nn.Module, inputs: Inputs, fabric: Fabric) -> tuple[float, float]:
    """Forward and backward once in training mode; nothing of the module or of torch's random numbers changes.

    Args:
        module: network and losses, before Fabric wrapped it: no process waits for another.
        inputs: what it takes; tensors are moved to its device.
        fabric: gives device and precision.

    Returns:
        seconds, and the memory at the peak in MiB.
    """
    device = fabric.device
    started = time.perf_counter()
    with untouched(module, device):
        module.train()
        moved = [value.to(device) if isinstance(value, torch.Tensor) else value for value in inputs]
        with fabric.autocast():
            loss = module(*moved)["loss"]
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - started, peak_memory_mib(device)


def try_out(
    module: nn.Module,
    inputs: Inputs,
    fabric: Fabric,
    what: str,
    compiled: ModeChoice | None = None,
    may_fail: bool = False,
) -> bool:
    """A trial step as the module is, then one compiled.

    Args:
        module: network and losses, before Fabric wrapped it.
        inputs: of the heaviest step that the run will take.
        fabric: of the run.
        what: the step, in words.
        compiled: how the module is compiled, in place; None = it stays as it is.
        may_fail: where compilation fails the module stays as it was, and a warning says so.

    Returns:
        Whether the module is compiled now, the same in every process.

    Raises:
        DataError: where a step does not fit into the GPU's memory.
        Exception: of the compiler, unless `may_fail`.
    """
    seconds, peak = _fitting(module, inputs, fabric, what)
    log.info("trial step of %s (thrown away: weights and random numbers are as before): %.1f s, %.1f GiB at the peak",
             what, seconds, peak / 2**10)  # fmt: skip
    if compiled is None:
        return False
    started = time.perf_counter()

    def attempt(calls: int) -> None:
        for _ in range(calls):
            begin_pass()
            _fitting(module, inputs, fabric, what)

    if not compile_tried(module, compiled, fabric, may_fail, attempt):
        return False
    log.info("compiled, and tried out, in %.0f s", time.perf_counter() - started)
    return True


def _fitting(module: nn.Module, inputs: Inputs, fabric: Fabric, what: str) -> tuple[float, float]:
    try:
        return trial_step(module, inputs, fabric)
    except torch.cuda.OutOfMemoryError as error:
        raise DataError(
            f"a step of {what} does not fit into the GPU's memory: lower --batch-size or --crop, or take a smaller "
            f"--backbone; nothing was written ({str(error).splitlines()[0]})"
        ) from error
