"""`cpn segment train`: a segmentation network from images and masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import SegmentConfig
from cpn_fast.data.loading.steps import Span, steps_per_epoch
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Record
from cpn_fast.fabric import Fabric
from cpn_fast.files.chosen import Chosen
from cpn_fast.files.errors import DataError
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.models.build import create_deeplab
from cpn_fast.models.deeplab import DeepLab, norm_momentum, set_norm_momentum
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.batches import SegmentBatch, SegmentStream
from cpn_fast.segment.loss import PixelClassification
from cpn_fast.segment.masks import check_masks, open_masks, reviewed
from cpn_fast.segment.validation import SegmentValidator, create_segment_validator
from cpn_fast.training.run import run_training
from cpn_fast.training.task import TrainingTask


def run_segment_train(config: SegmentConfig, progress: Progress = SILENT) -> RunFolder:
    """Train one segmentation network (the same in every process of a distributed run).

    Args:
        config: the settings.
        progress: where the training is shown.

    Returns:
        The run folder, with final weights.

    Raises:
        DataError: if data, masks, weights or settings do not fit, or the folder holds a run and `resume` is off.
        NonFiniteError: if a loss or gradient was not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    return run_training(with_recipe(config), SegmentTask, progress)


class SegmentTask(TrainingTask[SegmentConfig]):
    """Training of a segmentation network."""

    losses = ("loss",)
    primary_metrics = ("miou",)

    def __init__(self, config: SegmentConfig, fabric: Fabric, progress: Progress = SILENT) -> None:
        super().__init__(config, fabric, progress)
        self.source = open_source(config.data)
        self.masks = open_masks(config.masks, self.source)
        self.records = self._usable(self.source.records(config.split))
        self.classes, self.num_records = tuple(self.source.classes), len(self.records)

    def _usable(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records whose masks are to be used; the first process looks, and where it finds a fault all end."""
        found: list[bool] | str = ""
        if self.fabric.is_global_zero:
            try:
                found = self._looked_at(records)
            except DataError as error:
                found = str(error)
        found = self.fabric.broadcast(found)
        if isinstance(found, str):
            raise DataError(found)
        return records if all(found) else Chosen(records, (place for place, usable in enumerate(found) if usable))

    def _looked_at(self, records: Sequence[Record]) -> list[bool]:
        """Per record, whether it can be trained on. Raises DataError for masks, or a review, that do not fit."""
        config = self.config
        config.check_reviewed()
        chosen = reviewed(self.masks, records, config.only, config.review)
        wanted = [record for record, is_chosen in zip(records, chosen, strict=True) if is_chosen]
        usable = iter(check_masks(self.masks, wanted, config.allow_missing, self.progress))
        return [is_chosen and next(usable) for is_chosen in chosen]

    def create_net(self) -> DeepLab:
        """The untrained DeepLab, its batch norms as slow as the length of the training allows."""
        net = create_deeplab(self.config, len(self.classes))
        steps = steps_per_epoch(self.num_records, self.config.loop.batch_size) * (self.config.loop.epochs or 1)
        set_norm_momentum(net, norm_momentum(steps))
        self._check_norms(net)
        return net

    def _check_norms(self, net: DeepLab) -> None:
        """Refuse crops of one position in batches of one: a batch norm that trains has nothing to compare it with."""
        stride, crop = net.backbone.strides[2], self.config.augment.crop
        if self.config.loop.batch_size // self.fabric.world_size > 1 or crop > stride:
            return
        raise DataError(
            f"--batch-size {self.config.loop.batch_size} with --crop {crop}: each process sees one image a step, and "
            f"the network's last maps have one position (stride {stride}), of which batch norms cannot learn; expected "
            f"a larger --batch-size or a --crop above {stride}"
        )

    def create_module(self, net: nn.Module) -> nn.Module:
        """Cross entropy around the network."""
        assert isinstance(net, DeepLab)
        return PixelClassification(net)

    def stream(self, net: nn.Module, span: Span) -> Iterable[SegmentBatch]:
        """Crops with their masks."""
        assert isinstance(net, DeepLab)
        red, green, blue = (round(255 * value) for value in net.mean.tolist())
        return SegmentStream(self.masks, self.records, self.config, span, (red, green, blue), self.fabric.device)

    def inputs(self, batch: SegmentBatch, step: int, total_steps: int) -> tuple[Tensor, ...]:
        """The batch's tensors."""
        del step, total_steps
        return batch.images, batch.targets

    def trial_inputs(self, net: nn.Module) -> tuple[Tensor, ...]:
        """Noise that is all background."""
        images = self.noise()
        return images, torch.zeros(images.shape[:3], dtype=torch.uint8)

    def evaluator(self) -> SegmentValidator | None:
        """mIoU on a few images."""
        return create_segment_validator(self.source, self.config, self.records)
