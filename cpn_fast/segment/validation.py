"""Validation metrics of a segmentation network: mIoU on a fixed subset at one scale, and pictures of a few images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from cpn_fast.config.training import SegmentConfig
from cpn_fast.data.sources.spread import spread_evenly
from cpn_fast.data.types import Record, Sample, Source
from cpn_fast.metrics.beta_sweep import iou_point
from cpn_fast.metrics.confusion import confusion_of
from cpn_fast.metrics.report import finite
from cpn_fast.models.deeplab import DeepLab
from cpn_fast.models.segmenter import Segmenter
from cpn_fast.training.task import ValidationMetrics
from cpn_fast.training.validation import (
    NUM_IMAGES,
    check_finite_maps,
    masks_beside,
    never,
    resized,
    training_mode_kept,
    warn_without_foreground,
)

log = logging.getLogger(__name__)


class SegmentValidator:
    """A fixed validation subset, read once and kept in memory.

    Args:
        samples: with masks.
        num_classes: K foreground classes.
        long_side: to which images and masks are scaled, in pixels.
    """

    def __init__(self, samples: Sequence[Sample], num_classes: int, long_side: int) -> None:
        self.num_classes = num_classes
        self._samples = [resized(sample, long_side) for sample in samples]

    @torch.no_grad()
    def evaluate(
        self, net: DeepLab, device: torch.device, stopped: Callable[[], bool] = never
    ) -> ValidationMetrics | None:
        """Score the network at a single scale. Its training mode is as before afterwards.

        Args:
            net: the network.
            device: where it is.
            stopped: asked before each image.

        Returns:
            values `miou`, `background`, `foreground` (None where no class of it occurs), `images`; and pictures of
            image, prediction and truth side by side. None once `stopped` says so.

        Raises:
            NonFiniteError: for probabilities that are not finite.
        """
        confusion = np.zeros((self.num_classes + 1, self.num_classes + 2), dtype=np.int64)
        pictures = {}
        with training_mode_kept(net):
            segmenter = Segmenter(net, scales=(1.0,), flip=False)
            for index, sample in enumerate(self._samples):
                if stopped():
                    return None
                images = torch.from_numpy(sample.image)[None].to(device)
                any_class = torch.full((1, self.num_classes), -1.0, device=device)
                out = segmenter(images, any_class)
                check_finite_maps("probabilities", out.probabilities.float().sum().cpu().numpy())
                mask = out.mask[0].cpu().numpy()
                assert sample.mask is not None
                confusion += confusion_of(sample.mask, mask, self.num_classes)
                if index < NUM_IMAGES:
                    pictures[sample.record.id] = masks_beside(sample.image, mask, sample.mask)
        point = iou_point(confusion)
        figures = {name: finite(getattr(point, name)) for name in ("miou", "background", "foreground")}
        return ValidationMetrics({"images": len(self._samples), **figures}, pictures)


def create_segment_validator(
    source: Source, config: SegmentConfig, train_records: Sequence[Record]
) -> SegmentValidator | None:
    """The validator of a run: `val_images` images spread evenly over those of the validation split that have masks.

    Without a validation split they are training images.

    Args:
        source: the data, whose own masks are the truth.
        config: `val_split`, `val_images` and `eval_every` are used, and the middle of `augment`'s range of long sides.
        train_records: the training split.

    Raises:
        DataError: if `config.val_split` is no split.
    """
    if config.loop.eval_every <= 0 or config.loop.val_images <= 0:
        return None
    split = config.val_split or ("val" if "val" in source.splits() else None)
    if not split:
        log.warning("no validation split: the validation metrics are of training images")
    records = source.records(split) if split else train_records
    samples = [source.read(record, with_mask=True) for record in spread_evenly(records, config.loop.val_images)]
    samples = [sample for sample in samples if sample.mask is not None]
    if not samples:
        log.warning("no validation metrics: no image of %s has a mask; name another split with --val-split", split)
        return None
    warn_without_foreground([sample.mask for sample in samples])
    return SegmentValidator(samples, len(source.classes), round(sum(config.augment.resize_range()) / 2))
