"""What a training's options leave to the machine, settled before it begins, with the reasons in words."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Literal

import torch

from cpn_fast.config.device_options import CPU_WORKERS, DeviceOptions, Precision
from cpn_fast.config.training import C
from cpn_fast.data.loading.parallel import available_cores
from cpn_fast.runs.folder import RunFolder

log = logging.getLogger(__name__)

BF16 = (8, 0)
"""The first compute capability with bfloat16 tensor cores."""

MOST_WORKERS = 16
"""Data-loading processes of each GPU at most: each holds batches that it has read ahead."""


@dataclass(frozen=True)
class Machine:
    """What decides over the choices.

    Attributes:
        gpu: name of the GPU that trains; "" = the CPU does.
        bf16: whether it has bfloat16 tensor cores.
        cores: CPU cores of this process.
    """

    gpu: str
    bf16: bool
    cores: int

    @classmethod
    def here(cls, accelerator: Literal["auto", "cpu", "cuda"]) -> Machine:
        """This machine, with its GPU unless the CPU is asked for."""
        if accelerator == "cpu" or not torch.cuda.is_available():
            return cls("", False, available_cores())
        return cls(torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0) >= BF16, available_cores())


@dataclass(frozen=True)
class Choice:
    """Options with nothing left open.

    Attributes:
        options: those of the run.
        reasons: what was chosen and why, a sentence each.
        compile_may_fail: where compilation fails the run goes on without it, since nobody asked for it by name.
    """

    options: DeviceOptions
    reasons: tuple[str, ...]
    compile_may_fail: bool


def choose_device(given: DeviceOptions, machine: Machine, stored: DeviceOptions | None = None) -> Choice:
    """Settle what is "auto" or None.

    Args:
        given: options as they were given.
        machine: that trains.
        stored: those of the run that is resumed, whose numbers it keeps; None = a new run.
    """
    precision, why_precision = _precision(given, machine, stored)
    compiled, why_compiled = _compiled(given, machine, stored)
    workers = _workers(given.devices, machine) if given.workers is None else given.workers
    trial = given.trial_step
    if trial == "auto":
        trial = "on" if machine.gpu else "off"
    options = dataclasses.replace(given, precision=precision, compile=compiled, workers=workers, trial_step=trial)
    gpu_only = f", TF32 {_word(given.tf32)}, cudnn.benchmark {_word(given.cudnn_benchmark)}" if machine.gpu else ""
    layout = "channels_last" if given.channels_last else "contiguous"
    reasons = (
        f"training on {machine.gpu or 'the CPU'}: precision {precision} ({why_precision}), --compile {compiled} "
        f"({why_compiled})",
        f"memory format {layout}, fused SGD{gpu_only}; loader processes: {workers} "
        f"({'as given' if given.workers is not None else _why_workers(given.devices, machine)})",
    )
    return Choice(options, reasons, given.compile == "auto")


def _precision(given: DeviceOptions, machine: Machine, stored: DeviceOptions | None) -> tuple[Precision, str]:
    if given.precision != "auto":
        return given.precision, "as given"
    if stored is not None and stored.precision != "auto":
        return stored.precision, "the run's own"
    if not machine.gpu:
        return "32-true", "the CPU's"
    return ("bf16-mixed", "the GPU has it") if machine.bf16 else ("32-true", "the GPU has no bfloat16")


def _compiled(given: DeviceOptions, machine: Machine, stored: DeviceOptions | None) -> tuple[Literal["on", "off"], str]:
    if given.compile != "auto":
        return given.compile, "as given"
    if stored is not None and stored.compile != "auto":
        return stored.compile, "the run's own"
    if machine.gpu:
        return "on", "pays on a GPU; once a step has passed without"
    return "off", "costs speed on the CPU"


def _workers(processes: int, machine: Machine) -> int:
    if not machine.gpu:
        return CPU_WORKERS
    return max(CPU_WORKERS, min(MOST_WORKERS, machine.cores // processes - 1))


def _why_workers(processes: int, machine: Machine) -> str:
    if not machine.gpu:
        return "the network needs the cores"
    shared = f" for {processes} processes" if processes > 1 else ""
    return f"{machine.cores} cores{shared}"


def _word(enabled: bool) -> str:
    return "on" if enabled else "off"


def settle_device(config: C, folder: RunFolder) -> tuple[C, Choice]:
    """The settings of a run with nothing left to the machine; on resume the run's own stand in first.

    Raises:
        DataError: where a run is resumed that is not there, or is of another kind.
    """
    stored = folder.config_of(type(config)).device if config.loop.resume else None
    choice = choose_device(config.device, Machine.here(config.device.accelerator), stored)
    return dataclasses.replace(config, device=choice.options), choice
