"""The training step of CPN, one optimisation after another. Each row runs in a process of its own:

    python -m benchmarks.waterfall ROW --data SPEC --weights FILE --work FOLDER

prints one JSON object: losses of the first steps, of the timed ones, images per second, peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from benchmarks.peers.training_step import AncestorCrops, separate_norms, total_loss
from benchmarks.untrained import calibrate, without_dropout
from cpn_fast.cam.batches import BatchStream
from cpn_fast.config.training import (
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    OptimizerOptions,
    PatchOptions,
    TrainConfig,
)
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.superpixels.cache import SuperpixelCache
from cpn_fast.data.types import Batch, Record, Source
from cpn_fast.device import peak_memory_mib, set_tf32, tune_allocator
from cpn_fast.methods import create_method
from cpn_fast.methods.common import classification_loss
from cpn_fast.methods.cpn import cp_loss_options
from cpn_fast.models import create_model
from cpn_fast.models.cam import CamNet
from cpn_fast.training.optimizer import create_optimizer, set_learning_rate
from cpn_kernels.ops.cp_loss import cp_loss
from cpn_kernels.ops.cp_triplet import cp_triplet, reference

IMAGES = 16
BATCH, CROP = (4, 448) if torch.cuda.is_available() else (8, 320)
"""The paper's on a GPU; about as many pixels on a CPU, with the batch size that `cpn train` takes by itself."""
COMPARED = 3
UNCOUNTED, COUNTED = (4, 12) if torch.cuda.is_available() else (1, 5)
"""Steps on the same patches, whose losses are compared; then steps on a row's own patches, uncounted and timed. On a
GPU no more than fit into a check's minutes, all rows together; loaders work ahead, and cost more in a longer run."""

Step = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Row:
    """One row: what is new in it, and what it runs.

    Attributes:
        name: of the row.
        text: what is new in it.
        loader: "ancestor" (SLIC of each crop and a Python mask loop) or "cached".
        losses: "three passes" or "one batch" (eager, image by image), "fused" (this project's operators) or "method"
            (the module that `cpn train` runs).
        folded: frozen batch norms as part of the convolutions, instead of layers of their own.
        channels_last: memory format of the weights.
        compile: torch.compile.
        bf16: autocast to bfloat16.
        tolerance: of the relative difference between its first losses and the top row's.
    """

    name: str
    text: str
    loader: str
    losses: str
    folded: bool = True
    channels_last: bool = False
    compile: bool = False
    bf16: bool = False
    tolerance: float = 1e-3


ON_GPU = ("top", "cached patches", "fused operators", "bf16")
"""The rows that fit into a check's minutes on a GPU; each holds what the rows between it and the last one brought."""


def rows(cuda: bool) -> list[Row]:
    """All rows on a CPU, where bf16 goes without compilation, which loses there; those of `ON_GPU` on a GPU."""
    every = [
        Row(
            "top", "three eager fp32 passes, SLIC per crop, Python mask loop", "ancestor", "three passes", folded=False
        ),
        Row("one batch", "one batch of three views", "ancestor", "one batch", folded=False),
        Row(
            "folded norms",
            "frozen batch norms folded into convolutions, own depthwise backward",
            "ancestor",
            "one batch",
        ),
        Row("cached patches", "patches from cached maps, masks by look-up", "cached", "one batch"),
        Row("fused operators", "cp_triplet, pixel_correlation, cp_loss", "cached", "fused"),
        Row("channels_last", "channels_last", "cached", "method", channels_last=True),
        Row("compile", "torch.compile", "cached", "method", channels_last=True, compile=True),
        Row("bf16", "bf16 autocast", "cached", "method", channels_last=True, compile=cuda, bf16=True, tolerance=3e-2),
    ]
    return [row for row in every if not cuda or row.name in ON_GPU]


def settings(data: str, weights: Path | None, work: Path, cuda: bool) -> TrainConfig:
    """The run's settings, the same for every row; ResNet38 on a GPU."""
    backbone: str = "resnet38" if cuda else "mobilenet_v2"
    return TrainConfig(
        data,
        work / "run",
        method="cpn",
        backbone=backbone,
        weights=weights,
        loop=LoopOptions(batch_size=BATCH),
        # Untrained, a step of the usual size sends rounding through the minima and maxima of the maps far apart.
        optimizer=OptimizerOptions(lr=0.001 if weights else 1e-5, momentum=0.9),
        device=DeviceOptions(workers=8 if cuda else 0),
        options=MethodOptions(warm_up=0, dropout=0),
        patch=PatchOptions(backend="auto", cache_dir=work / "superpixels"),
        augment=AugmentOptions(crop=CROP),
    )


def prepare(data: str, weights: Path | None, work: Path, cuda: bool) -> tuple[Source, list[Record], SuperpixelCache]:
    """The first images that have labels, and their maps; computed by the first row, found by the others."""
    config = settings(data, weights, work, cuda)
    source = open_source(data)
    records = [record for record in source.records("train") if record.labels][:IMAGES]
    cache = SuperpixelCache(source, records, config.patch, config.augment)
    cache.prepare(progress=False, processes=1)
    return source, records, cache


def ancestor_batches(crops: AncestorCrops, first: int, last: int, workers: int) -> Iterator[Batch]:
    """Batches of steps first..last-1; the views stand in `images`, the visible share in `keys`."""
    places = range(first * BATCH, last * BATCH)
    loader = DataLoader(Subset(crops, places), BATCH, num_workers=workers, pin_memory=torch.cuda.is_available())
    for full, shown, rest, labels, visible in loader:
        yield Batch((), torch.stack([full, shown, rest]), torch.empty(0), visible, labels)


class Runner:
    """One row's network, optimizer and batches."""

    def __init__(self, row: Row, data: str, weights: Path | None, work: Path) -> None:
        self.row, self.cuda = row, torch.cuda.is_available()
        self.gradient_norm: float | None = None
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.config = settings(data, weights, work, self.cuda)
        self.source, self.records, self.cache = prepare(data, weights, work, self.cuda)
        if not row.folded:
            separate_norms()
        torch.manual_seed(0)
        self.net: CamNet = create_model(self.config, len(self.source.classes))
        without_dropout(self.net)
        self.net.to(self.device)
        if weights is None:
            calibrate(self.net, next(iter(self.cached_batches(0, 1))).images.to(self.device))
        method = create_method(self.config, self.net).to(self.device).train()
        if row.channels_last:
            method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = create_optimizer(self.net, self.config)
        set_learning_rate(self.optimizer, self.config.optimizer.lr or 0.0)
        self.method = torch.compile(method, fullgraph=True, dynamic=False) if row.compile else method

    def cached_batches(self, first: int, last: int) -> BatchStream:
        device = self.device if self.cuda else None
        return BatchStream(
            self.source, self.records, self.config, first, last, cache=self.cache, map_device=device
        )  # fmt: skip

    def batches(self, first: int, last: int, own_patches: bool) -> Iterator[Batch]:
        """A row's batches; without `own_patches` an ancestor's loader takes the cached ones, too."""
        if self.row.loader == "cached":
            return iter(self.cached_batches(first, last))
        crops = AncestorCrops(self.source, self.records, self.config, None if own_patches else self.cache)
        return ancestor_batches(crops, first, last, self.config.device.loaders)

    def loss(self, batch: Batch) -> Tensor:
        """The row's total loss of a batch."""
        row, labels = self.row, batch.labels
        if row.loader == "ancestor":
            return total_loss(self.net, list(batch.images), labels, batch.keys, row.losses == "one batch")
        if row.losses == "one batch":
            views, visible = reference.cp_triplet(batch.images, batch.patches, batch.keys, 0.5)
            return total_loss(self.net, views.contiguous().chunk(3), labels, visible, True)
        if row.losses == "fused":
            return self.fused_loss(batch)
        return self.method(batch.images, batch.patches, batch.keys, labels, False)["loss"]

    def fused_loss(self, batch: Batch) -> Tensor:
        """What the method does, with views in contiguous memory."""
        options, labels = self.config.options, batch.labels
        views, visible = cp_triplet(
            batch.images, batch.patches, batch.keys, options.p_hidden, memory_format=torch.contiguous_format
        )
        out = self.net(views)
        valid = torch.ones(3, len(labels), device=labels.device)
        cls = classification_loss(out.scores.unflatten(0, (3, len(labels))), labels, valid)
        rcam = self.net.refine(out.cam, out.features, labels.repeat(3, 1))
        tcp, cpcr = cp_loss(out.cam, rcam, labels, visible, cp_loss_options(options))
        return cls + tcp + cpcr

    def step(self, batch: Batch) -> Tensor:
        """One optimizer step; its loss, which the ancestors read at once."""
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.row.bf16):
            loss = self.loss(batch)
        loss.backward()
        if self.gradient_norm is None:
            gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
            self.gradient_norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.row.loader == "ancestor":
            loss.item()
        return loss.detach()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def run(self) -> dict[str, object]:
        """The row's figures."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        compared = [self.step(batch) for batch in self.batches(0, COMPARED, own_patches=False)]
        own, moments = [], []
        for batch in self.batches(COMPARED, COMPARED + UNCOUNTED + COUNTED, own_patches=True):
            own.append(self.step(batch))
            if not self.cuda or len(own) in (UNCOUNTED, UNCOUNTED + COUNTED):
                self.wait()
                moments.append(time.perf_counter())
        if self.cuda:
            step_seconds = (moments[1] - moments[0]) / COUNTED
        else:
            ends = moments[UNCOUNTED - 1 :]
            step_seconds = statistics.median(end - begin for begin, end in pairwise(ends))
        return {
            **asdict(self.row),
            "first_losses": [float(loss) for loss in compared],
            "gradient_norm": self.gradient_norm,
            "own_losses": [float(loss) for loss in own[: UNCOUNTED + 5]],
            "step_ms": 1e3 * step_seconds,
            "images_per_second": BATCH / step_seconds,
            "peak_mib": peak_memory_mib(self.device),
        }


def main() -> None:
    """Run one row and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("row")
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    tune_allocator()
    set_tf32(False)
    row = next(row for row in rows(torch.cuda.is_available()) if row.name == given.row)
    print(json.dumps(Runner(row, given.data, given.weights, given.work).run()))


if __name__ == "__main__":
    main()
