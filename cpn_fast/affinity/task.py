"""Training of AffinityNet, as a task of the common loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cpn_fast.affinity.batches import AffinityBatch, AffinityStream
from cpn_fast.affinity.labels import LabelStore, make_affinity_labels
from cpn_fast.affinity.options import LABELS
from cpn_fast.affinity.validation import WalkValidator, create_walk_validator
from cpn_fast.config.training import AffinityConfig
from cpn_fast.data.loading.steps import Span
from cpn_fast.data.sources.open import open_source
from cpn_fast.fabric import Fabric
from cpn_fast.files.errors import DataError
from cpn_fast.files.member import Member
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.models import create_affinity_net
from cpn_fast.models.affinity_net import AffinityNet, affinity_loss, pair_counts
from cpn_fast.refine.labelled_folder import images_of
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.task import TrainingTask
from cpn_kernels.ops.cp_triplet import normalise_images


class AffinityObjective(nn.Module):
    """AffinityNet and its loss."""

    def __init__(self, net: AffinityNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, labels: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """The loss and its parts.

        Args:
            images: uint8 [B, H, W, 3].
            labels: int64 [B, h, w] on the network's grid.
            pairs: float [3], what to divide by (see `affinity_loss`).
        """
        loss = affinity_loss(self.net(normalise_images(images)), labels, counts=pairs)
        return {
            "loss": loss.total,
            "background": loss.background.detach(),
            "foreground": loss.foreground.detach(),
            "negative": loss.negative.detach(),
        }


class AffinityTask(TrainingTask[AffinityConfig]):
    """Makes the labels where they are not there yet, and trains on them.

    The loss divides by the pairs of the whole batch, as its authors do, so that a crop with a handful of pairs of a
    kind counts for as little as they are; with several processes their counts are summed first, which makes
    data-parallel gradients those of a single process.
    """

    losses = ("loss", "background", "foreground", "negative")
    primary_metrics = ("maps_miou", "walk_miou")

    def __init__(self, config: AffinityConfig, fabric: Fabric, progress: Progress = SILENT) -> None:
        super().__init__(config, fabric, progress)
        run = RunFolder(config.output)
        self.store = LabelStore(run.path / LABELS)
        self.paths = images_of(open_source(config.data) if config.data else None)
        if config.loop.resume:
            self.store.check_unchanged(config.masks)
            self._learn_from(run.classes)

    def prepare(self) -> None:
        """Make the labels of a new run."""
        if self.config.loop.resume:
            return
        made = make_affinity_labels(self.config, self.store.path, self.progress)
        if self.fabric.is_global_zero:
            self.store.snapshot(made.images)
        self.fabric.barrier()
        self._learn_from(made.classes)

    def _learn_from(self, classes: tuple[str, ...]) -> None:
        self.classes, self.num_records = classes, len(self.store.frozen)
        self._need_images()

    def _need_images(self) -> None:
        paths = [self.paths.get(entry["id"], entry["image"]) for entry in self.store.frozen]
        missing = [str(path) for path in paths if not isinstance(path, Member) and not Path(path).is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: not found ({len(missing)} of {len(paths)} images that the run learns from are gone); "
                "put them back, or start a new run in another --output, which leaves them out"
            )

    def create_net(self) -> AffinityNet:
        """The untrained AffinityNet."""
        return create_affinity_net(self.config)

    def create_module(self, net: nn.Module) -> nn.Module:
        """The loss around the network."""
        assert isinstance(net, AffinityNet)
        return AffinityObjective(net)

    def stream(self, net: nn.Module, span: Span) -> AffinityStream:
        """Crops with their labels."""
        assert isinstance(net, AffinityNet)
        stride = net.backbone.strides[2]
        return AffinityStream(self.store.frozen, self.paths, self.store, self.config, stride, span, self.fabric.device)

    def together(self, batches: Sequence[AffinityBatch]) -> Sequence[AffinityBatch]:
        """The loss is a mean over the pairs of the whole step: each batch gets its share of their number."""
        if len(batches) == 1:
            return batches
        pairs = torch.cat([batch.pairs for batch in batches]).sum(dim=0, keepdim=True).double() / len(batches)
        return [replace(batch, pairs=pairs) for batch in batches]

    def inputs(self, batch: AffinityBatch, step: int, total_steps: int) -> tuple[Tensor, ...]:
        """The batch's tensors; pairs are those of all processes, as one process's share."""
        del step, total_steps
        pairs = batch.pairs.sum(dim=0).float()
        if self.fabric.world_size > 1:
            torch.distributed.all_reduce(pairs)
            pairs = pairs / self.fabric.world_size
        return batch.images, batch.labels, pairs

    def trial_inputs(self, net: nn.Module) -> tuple[Tensor, ...]:
        """Noise whose left half is background and whose right half is of one class."""
        assert isinstance(net, AffinityNet)
        images = self.noise()
        side = -(-images.shape[1] // net.backbone.strides[2])
        labels = torch.zeros(images.shape[0], side, side, dtype=torch.int64)
        labels[:, :, side // 2 :] = 1
        return images, labels, pair_counts(labels).float()

    def evaluator(self) -> WalkValidator | None:
        """mIoU before and after the walk on a few of the images, where `data` has masks."""
        return create_walk_validator(self.config, [entry["id"] for entry in self.store.frozen])
