"""A timed training step of CPN, the paper's: ResNet38, 4 crops of 448 x 448, bfloat16, 200 superpixels a crop.

    python -m benchmarks.gpu.train_step FIGURES.json [--compile] [--profile] [--on-cpu]

Fails where the step's peak memory passes 12 GB. `--profile` says which kernels take its time, and how many it launches.
`--on-cpu` goes the same way with a small network: what it measures there is of no use, but that it measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import matmul_tflops, peak_tflops, seconds
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import LoopOptions, TrainConfig
from cpn_fast.device import set_tf32
from cpn_fast.methods import create_method
from cpn_fast.models import create_model
from cpn_fast.training.optimizer import create_optimizer, set_learning_rate

BATCH, CROP, CLASSES, CELL = 4, 448, 20, 32
LIMIT_GB = 12.0
TOP = 15
"""Kernels that a profile names."""
IMAGES_PER_EPOCH, EPOCHS = 10_582, 8
"""VOC's augmented training set, and the paper's epochs."""


class TrainStep:
    """Network, optimizer and a batch that lies on the device.

    Args:
        device: where.
        backbone: which.
        crop: side in pixels.
        compiled: torch.compile.
        backend: its backend.
    """

    def __init__(
        self,
        device: str,
        backbone: str = "resnet38",
        crop: int = CROP,
        compiled: bool = False,
        backend: str = "inductor",
    ) -> None:
        config = with_recipe(
            TrainConfig("", Path(), method="cpn", backbone=backbone, loop=LoopOptions(batch_size=BATCH))
        )
        torch.manual_seed(0)
        self.device = device
        net = create_model(config, CLASSES)
        method = create_method(config, net).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method = method.train()
        self.call = method
        if compiled:
            self.call = torch.compile(method, fullgraph=True, dynamic=False, backend=backend)
        self.optimizer = create_optimizer(net, config)
        set_learning_rate(self.optimizer, 1e-4)
        self.images = torch.randint(0, 256, (BATCH, crop, crop, 3), dtype=torch.uint8).to(device)
        cell = torch.arange(crop) // CELL
        patches = cell[:, None] * (int(cell[-1]) + 1) + cell
        self.patches = patches.int().expand(BATCH, crop, crop).contiguous().to(device)
        self.keys = torch.arange(BATCH).to(device)
        self.labels = torch.eye(CLASSES)[:BATCH].to(device)

    def forward_backward(self) -> Tensor:
        """Loss of one step, its gradients left on the weights."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss = self.call(self.images, self.patches, self.keys, self.labels, False)["loss"]
        loss.backward()
        return loss.detach()

    def __call__(self) -> Tensor:
        loss = self.forward_backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def counted_tflop(self) -> float:
        """Matrix products and convolutions of a step, forward and backward, as torch's counter sees them.

        What runs inside this project's kernels (PCM, 0.5 to 2%) is not counted, so a share of the peak is not
        flattered by it. Nothing is counted of a compiled step: count the eager one.
        """
        with FlopCounterMode(display=False) as counter:
            self.forward_backward()
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops() / 1e12


def profiled(step: TrainStep) -> dict[str, Any]:
    """One step under torch's profiler: kernels launched, and those that take most of the time, in milliseconds.

    On the CPU operators stand in for kernels.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = step.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        step()
        if cuda:
            torch.cuda.synchronize()
    wanted = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    taken = [event for event in found.key_averages() if event.device_type == wanted]

    def ms(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3

    top = sorted(taken, key=ms, reverse=True)[:TOP]
    return {
        "launches": sum(event.count for event in taken),
        "busy_ms": sum(ms(event) for event in taken),
        "top": [{"kernel": event.key[:120], "calls": event.count, "ms": round(ms(event), 3)} for event in top],
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, writing figures as they are found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("figures", type=Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--on-cpu", action="store_true")
    given = parser.parse_args(argv)
    set_tf32(True)
    torch.backends.cudnn.benchmark = True  # as a run has it
    device, backbone, crop = ("cpu", "resnet38_tiny", 32) if given.on_cpu else ("cuda", "resnet38", CROP)
    calls, rounds = (1, 1) if given.on_cpu else (5, 3)
    figures: dict[str, Any] = {"step": f"{backbone}, {BATCH} x {crop} px, bf16", "compiled": given.compile}

    def keep(**values: Any) -> None:
        figures.update(values)
        given.figures.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    # On the CPU, Inductor would take minutes for what it is not to show.
    step = TrainStep(device, backbone, crop, given.compile, "aot_eager" if given.on_cpu else "inductor")
    eager = step.call
    step.call = step.method
    tflop = step.counted_tflop()
    step.call = eager
    keep(counted_tflop=round(tflop, 4))
    keep(first_loss=float(step()))
    for _ in range(calls):
        step()
    if not given.on_cpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    taken = statistics.median(seconds(step, device, calls=calls) for _ in range(calls))
    peak_gb = 0.0 if given.on_cpu else torch.cuda.max_memory_allocated() / 1e9
    keep(
        step_ms=1e3 * taken,
        images_per_second=BATCH / taken,
        tflops=tflop / taken,
        peak_memory_gb=round(peak_gb, 2),
        fits_in_12_gb=peak_gb <= LIMIT_GB,
        voc_8_epochs_minutes=round(IMAGES_PER_EPOCH // BATCH * EPOCHS * taken / 60, 1),
        last_loss=float(step()),
    )
    if given.profile:
        keep(profile=profiled(step))
    if not given.compile:
        torch.backends.cudnn.benchmark = False
        step()  # chooses its convolutions anew
        without = statistics.median(seconds(step, device, calls=calls) for _ in range(rounds))
        keep(step_ms_without_cudnn_benchmark=1e3 * without)
        torch.backends.cudnn.benchmark = True
    rate = None if given.on_cpu else peak_tflops()
    keep(share_of_bf16_peak=tflop / taken / rate if rate else None, finite=bool(torch.isfinite(step())))
    if not given.on_cpu:
        keep(matmul_tflops=matmul_tflops())
    print(json.dumps(figures, indent=2))
    return 0 if figures["fits_in_12_gb"] and figures["finite"] else 1


if __name__ == "__main__":
    sys.exit(main())
