"""Training crops with their masks by step number: the same whatever the number of workers or processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cpn_fast.config.training import SegmentConfig
from cpn_fast.data.loading.augment import IMAGENET_MEAN_PIXEL
from cpn_fast.data.loading.crops import crop_tensors, made_crops
from cpn_fast.data.loading.random import generator
from cpn_fast.data.loading.steps import Crop, Span, place_of, step_loader
from cpn_fast.data.types import VOID, Record
from cpn_fast.segment.masks import TrainingMasks


@dataclass(frozen=True)
class SegmentBatch:
    """One training step's input.

    Attributes:
        ids: the B sample ids.
        images: uint8 [B, H, W, 3] RGB, augmented crops.
        targets: uint8 [B, H, W], 0 background, 1..K classes, 255 void and crop padding.
    """

    ids: tuple[str, ...]
    images: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> SegmentBatch:
        """Move every tensor to `device` without waiting for it."""
        images, targets = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.targets))
        return SegmentBatch(self.ids, images, targets)


class SegmentStream:
    """The batches of a span of steps, as CPU tensors (images on `device` where `--augment-on device` makes them).

    A step's batch depends on the config's seed, the step number and the records alone.

    Args:
        masks: reads image and mask.
        records: the images that are trained on, in their stable order.
        config: seed, batch size, augmentation, workers.
        span: which steps, which process.
        fill: colour of crop padding, uint8 RGB.
        device: that trains; None = the CPU.
    """

    def __init__(
        self,
        masks: TrainingMasks,
        records: Sequence[Record],
        config: SegmentConfig,
        span: Span,
        fill: tuple[int, int, int] = IMAGENET_MEAN_PIXEL,
        device: torch.device | None = None,
    ) -> None:
        self._crops = _Crops(masks, records, config, fill)
        self._config, self._span, self._fill, self._device = config, span, fill, device or torch.device("cpu")

    def __len__(self) -> int:
        """Steps that are left."""
        return self._span.total_steps - self._span.start_step

    def __iter__(self) -> Iterator[SegmentBatch]:
        """One pass from the span's first step on."""
        config = self._config
        for ids, tensors in step_loader(self._crops, self._span, config.loop.batch_size, config.device.loaders):
            if config.device.augment_on == "device":
                tensors["images"] = made_crops(tensors, config.augment.crop, self._fill, self._device)
            yield SegmentBatch(tuple(ids), **tensors)


class _Crops(Dataset[Crop]):
    """Augmented crops by (step, slot)."""

    def __init__(
        self, masks: TrainingMasks, records: Sequence[Record], config: SegmentConfig, fill: tuple[int, int, int]
    ) -> None:
        self._masks, self._records, self._config, self._fill = masks, records, config, fill

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: tuple[int, int]) -> Crop:
        config = self._config
        place = place_of(*index, config.loop.seed, len(self._records), config.loop.batch_size)
        record = self._records[place.number]
        sample = self._masks.read(record)
        rng = generator(config.loop.seed, place.epoch, record.id, f"augment{place.suffix}")
        packed = config.device.augment_on == "device"
        tensors, geometry = crop_tensors(sample.image, config.augment, rng, self._fill, packed)
        assert sample.mask is not None
        target = geometry.apply_map(sample.mask, fill=VOID).astype(np.uint8)
        return record.id, tensors | {"targets": torch.from_numpy(target)}
