"""Where a training runs, and with which numbers; what is left to the machine is settled as the training begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Switch = Literal["auto", "on", "off"]
CompileMode = Literal["auto", "default", "reduce-overhead"]

CPU_WORKERS = 2
"""Data-loading processes where the network trains on the CPU."""

SWITCHES = ("compile",)
"""Options that were true or false in earlier versions."""


@dataclass(frozen=True)
class DeviceOptions:
    """Where a training runs, and with which numbers.

    Attributes:
        accelerator: Fabric accelerator.
        devices: processes (CPU) or GPUs.
        timeout: seconds for which processes wait for one another, a validation of the first one included, before the
            training ends with an error.
        workers: data-loading processes of each; None = 2, on a GPU as many as there are cores for.
        precision: Lightning Fabric precision; "auto" = bf16-mixed on a GPU that has it, else 32-true.
        compile: torch.compile network and loss, "on" or "off"; "auto" = on where a GPU trains, once a step has passed
            without it; off on the CPU, where it costs speed.
        compile_mode: torch.compile's mode: "default", or "reduce-overhead", in which a GPU also replays the launches of
            a step from a CUDA graph; "auto" = that for a network of up to 10 million weights in one process, whose step
            would wait for its launches. No number of the run depends on it.
        trial_step: before a run begins, take one step of the kind that its end is made of and throw it away, so that
            what does not fit into memory or does not compile shows at once; "auto" = on a GPU. No number of the run
            depends on it.
        augment_on: where training crops are made: on the "host", by the loading processes; or on the "device" that
            trains, whose loading processes then only read the images. The crops are the same to the bit. On the CPU it
            makes the training process itself do the work.
        channels_last: memory format (faster in trials on a CPU; not tried on a GPU).
        tf32: TF32 matrix products on a GPU.
        cudnn_benchmark: let cuDNN time its convolutions on a GPU at the first step of each size and take the fastest;
            two runs, or a run and its resumption, may then differ in their last bits.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    timeout: int = 1800
    workers: int | None = None
    precision: Precision = "auto"
    compile: Switch = "auto"
    compile_mode: CompileMode = "auto"
    trial_step: Switch = "auto"
    augment_on: Literal["host", "device"] = "host"
    channels_last: bool = True
    tf32: bool = True
    cudnn_benchmark: bool = True

    @property
    def loaders(self) -> int:
        """Data-loading processes: those given, else those of a CPU."""
        return CPU_WORKERS if self.workers is None else self.workers
