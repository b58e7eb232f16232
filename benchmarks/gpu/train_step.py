"""A timed training step of CPN, the paper's: ResNet38, 4 crops of 448 x 448, bfloat16, 200 superpixels a crop.

    python -m benchmarks.gpu.train_step FIGURES.json [--compile]

Fails where the step's peak memory passes 12 GB.
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
IMAGES_PER_EPOCH, EPOCHS = 10_582, 8
"""VOC's augmented training set, and the paper's epochs."""


class TrainStep:
    """Network, optimizer and a batch that lies on the device.

    Args:
        device: where.
        backbone: which.
        crop: side in pixels.
        compiled: torch.compile.
    """

    def __init__(self, device: str, backbone: str = "resnet38", crop: int = CROP, compiled: bool = False) -> None:
        config = with_recipe(
            TrainConfig("", Path(), method="cpn", backbone=backbone, loop=LoopOptions(batch_size=BATCH))
        )
        torch.manual_seed(0)
        self.device = device
        net = create_model(config, CLASSES)
        method = create_method(config, net).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method = method.train()
        self.call = torch.compile(method, fullgraph=True, dynamic=False) if compiled else method
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


def main() -> int:
    """Measure, writing figures as they are found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("figures", type=Path)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    set_tf32(True)
    torch.backends.cudnn.benchmark = True  # as a run has it
    figures: dict[str, Any] = {"step": f"ResNet38, {BATCH} x {CROP} px, bf16", "compiled": given.compile}

    def keep(**values: Any) -> None:
        figures.update(values)
        given.figures.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    step = TrainStep("cuda", compiled=given.compile)
    eager = step.call
    step.call = step.method
    tflop = step.counted_tflop()
    step.call = eager
    keep(counted_tflop=round(tflop, 2))
    keep(first_loss=float(step()))
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = [seconds(step, "cuda", calls=5) for _ in range(5)]
    taken = statistics.median(times)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9
    keep(
        step_ms=1e3 * taken,
        images_per_second=BATCH / taken,
        tflops=tflop / taken,
        peak_memory_gb=round(peak_gb, 2),
        fits_in_12_gb=peak_gb <= LIMIT_GB,
        voc_8_epochs_minutes=round(IMAGES_PER_EPOCH // BATCH * EPOCHS * taken / 60, 1),
        last_loss=float(step()),
    )
    if not given.compile:
        torch.backends.cudnn.benchmark = False
        step()  # chooses its convolutions anew
        keep(step_ms_without_cudnn_benchmark=1e3 * statistics.median(seconds(step, "cuda", calls=5) for _ in range(3)))
        torch.backends.cudnn.benchmark = True
    rate = peak_tflops()
    keep(
        share_of_bf16_peak=tflop / taken / rate if rate else None,
        matmul_tflops=matmul_tflops(),
        finite=bool(torch.isfinite(step())),
    )
    print(json.dumps(figures, indent=2))
    return 0 if figures["fits_in_12_gb"] and figures["finite"] else 1


if __name__ == "__main__":
    sys.exit(main())
