"""How a training's step is compiled: the kernels alone, or also their launches, as a CUDA graph that is replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from cpn_fast.config.training import TrainingConfig
from cpn_fast.fabric import Fabric
from cpn_fast.files.errors import DataError
from cpn_fast.training.task import passes_of_step

log = logging.getLogger(__name__)

Mode = Literal["default", "reduce-overhead"]

SMALL = 10_000_000
"""Weights up to which a network's step on a GPU is taken to wait for its launches. Guessed, not measured: a MobileNetV2
has 2 million and some 700 launches a step, of which a host sends one in about 5 us."""

GRAPH_CALLS = 3
"""Calls until a CUDA graph has been replayed once: one warms up, one is recorded."""


@dataclass(frozen=True)
class ModeChoice:
    """A mode of torch.compile.

    Attributes:
        modes: the one to take, and those to fall back to where that fails.
        reason: in words.
    """

    modes: tuple[Mode, ...]
    reason: str


def choose_mode(config: TrainingConfig, module: nn.Module, device: torch.device, world_size: int) -> ModeChoice:
    """Settle `--compile-mode`.

    Args:
        config: settings of the run.
        module: network and losses.
        device: where they train.
        world_size: processes that share a step.

    Raises:
        DataError: where CUDA graphs are asked for with several passes a step: gradients of the first would lie where
            the second one's are written.
    """
    given, passes = config.device.compile_mode, passes_of_step(config, world_size)
    if given == "reduce-overhead" and passes > 1:
        raise DataError(
            f"--compile-mode reduce-overhead: a step has {passes} passes, whose gradients cannot lie in one CUDA "
            "graph; leave out --micro-batch, or give --compile-mode default"
        )
    if given != "auto":
        return ModeChoice((given,), "as given")
    weights = sum(parameter.numel() for parameter in module.parameters())
    millions = f"{weights / 1e6:.1f} million weights"
    if device.type != "cuda":
        return ModeChoice(("default",), "the CPU has no CUDA graphs")
    if passes > 1:
        return ModeChoice(("default",), f"{passes} passes a step")
    if world_size > 1:
        return ModeChoice(("default",), f"{world_size} processes")
    if getattr(module, "teacher", None) is not None:
        return ModeChoice(("default",), "a teacher's weights move in the step")
    if weights > SMALL:
        return ModeChoice(("default",), f"{millions}: its kernels take longer than their launches")
    return ModeChoice(
        ("reduce-overhead", "default"),
        f"{millions}: the step would wait for its launches, a CUDA graph sends them at once",
    )


def compile_module(module: nn.Module, mode: Mode) -> None:
    """Compile in place: what Fabric wrapped around the module then calls the compiled one."""
    # Dropout then draws eager's random bits, so that --compile changes no result beyond rounding.
    import torch._inductor.config as inductor

    inductor.fallback_random = True
    module.compile(fullgraph=True, dynamic=False, mode=mode)


def begin_pass() -> None:
    """Say that what an earlier call of a compiled module gave is done with: a CUDA graph writes its outputs anew."""
    torch.compiler.cudagraph_mark_step_begin()


def compile_tried(
    module: nn.Module,
    choice: ModeChoice,
    fabric: Fabric,
    may_fail: bool,
    attempt: Callable[[int], Any],
) -> bool:
    """Compile in the first of the modes in which a step passes.

    Args:
        module: network and losses, before Fabric wrapped it.
        choice: the modes.
        fabric: of the run.
        may_fail: where the last one fails the module stays as it was, and a warning says so.
        attempt: takes so many trial steps. A DataError ends the run: no other mode needs less memory.

    Returns:
        Whether the module is compiled now, the same in every process.

    Raises:
        Exception: of the compiler in the last mode, unless `may_fail`.
    """
    for place, mode in enumerate(choice.modes):
        last = place + 1 == len(choice.modes)
        compile_module(module, mode)
        failure: Exception | None = None
        try:
            attempt(GRAPH_CALLS if mode == "reduce-overhead" else 1)
        except DataError:
            raise
        except Exception as error:  # compilers fail in many ways
            failure = error
            if last and not may_fail:
                raise
        failed = torch.tensor(float(failure is not None), device=fabric.device)
        if not fabric.all_reduce(failed, reduce_op="sum"):
            return True
        module._compiled_call_impl = None
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0] if failure else "in another process"
        if last:
            log.warning("--compile auto: compilation failed (%s); training goes on without. --compile off leaves it "
                        "out, --compile on shows the whole error", reason)  # fmt: skip
        else:
            torch.compiler.reset()
            log.warning("--compile-mode auto: no CUDA graph could be made (%s); compiled without. --compile-mode "
                        "default leaves them out", reason)  # fmt: skip
    return False
