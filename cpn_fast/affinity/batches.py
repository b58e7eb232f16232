"""Training batches of AffinityNet: augmented crops, and labels on the network's grid that were augmented alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cpn_fast.affinity.labels import LabelStore
from cpn_fast.config.training import AffinityConfig
from cpn_fast.data.loading.augment import IMAGENET_MEAN_PIXEL, Geometry
from cpn_fast.data.loading.crops import crop_tensors, made_crops
from cpn_fast.data.loading.random import generator
from cpn_fast.data.loading.steps import Crop, Span, place_of, step_loader
from cpn_fast.files.images import read_image
from cpn_fast.files.member import ImageFile
from cpn_fast.files.soft_maps import read_soft_maps
from cpn_fast.models.affinity_labels import affinity_labels
from cpn_fast.models.affinity_net import VOID, pair_counts


@dataclass(frozen=True)
class AffinityBatch:
    """One training step's input.

    Attributes:
        ids: the B sample ids.
        images: uint8 [B, H, W, 3] RGB, augmented crops.
        labels: int64 [B, h, w] on the network's grid: 0 background, classes from 1 on, 255 void.
        pairs: int64 [B, 3], pairs of background, of one class, of different classes in each crop.
    """

    ids: tuple[str, ...]
    images: Tensor
    labels: Tensor
    pairs: Tensor

    def to(self, device: torch.device | str) -> AffinityBatch:
        """Move every tensor to `device` without waiting for it."""
        names = ("images", "labels", "pairs")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def crop_labels(low: NDArray[np.uint8], high: NDArray[np.uint8], geometry: Geometry, stride: int) -> Tensor:
    """Labels of a crop, by channel: scores go where the image went (nearest neighbour), then `affinity_labels`.

    Args:
        low: uint8 [C, h, w] over the whole image, scores in 1/255 with a low background exponent, background first.
        high: the same with a high one.
        geometry: of the crop; its padding has no score.
        stride: pixels per grid cell.

    Returns:
        int64 [ceil(crop / stride), ceil(crop / stride)], channel numbers or 255 = void.
    """

    def cropped(scores: NDArray[np.uint8]) -> Tensor:
        planes = [geometry.apply_map(plane, fill=0) for plane in scores]
        if len(planes) == 1:  # background alone; two channels are the least that can be compared
            planes.append(np.zeros_like(planes[0]))
        return torch.from_numpy(np.stack(planes)).float()[None] / 255

    return affinity_labels(cropped(low), cropped(high), stride)[0]


class AffinityStream:
    """Batches of a span of steps; a step's batch depends on the config's seed, its number and the images alone.

    Args:
        images: what `LabelStore.snapshot` wrote down.
        paths: image path by id where the index's is not the one to take.
        store: the labels.
        config: seed, batch size, augmentation, workers.
        stride: of the network's grid.
        span: which steps, which process.
        device: that trains, where `--augment-on device` makes the crops; None = the CPU.
    """

    def __init__(
        self,
        images: Sequence[Mapping[str, Any]],
        paths: Mapping[str, ImageFile],
        store: LabelStore,
        config: AffinityConfig,
        stride: int,
        span: Span,
        device: torch.device | None = None,
    ) -> None:
        read = [(str(entry["id"]), paths.get(entry["id"], Path(entry["image"]))) for entry in images]
        self._crops = _Crops(read, store, config, stride)
        self._span, self._batch_size, self._workers = span, config.loop.batch_size, config.device.loaders
        self._side, self._device = config.augment.crop, None
        if config.device.augment_on == "device":
            self._device = device or torch.device("cpu")

    def __len__(self) -> int:
        """Steps that are left."""
        return self._span.total_steps - self._span.start_step

    def __iter__(self) -> Iterator[AffinityBatch]:
        """One pass over the span."""
        for ids, tensors in step_loader(self._crops, self._span, self._batch_size, self._workers):
            if self._device is not None:
                tensors["images"] = made_crops(tensors, self._side, IMAGENET_MEAN_PIXEL, self._device)
            yield AffinityBatch(tuple(ids), **tensors)


class _Crops(Dataset[Crop]):
    """Augmented crops by (step, slot)."""

    def __init__(
        self, images: Sequence[tuple[str, ImageFile]], store: LabelStore, config: AffinityConfig, stride: int
    ) -> None:
        self._images, self._store, self._config, self._stride = list(images), store, config, stride

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: tuple[int, int]) -> Crop:
        step, slot = index
        config = self._config
        place = place_of(step, slot, config.loop.seed, len(self._images), config.loop.batch_size)
        image_id, path = self._images[place.number]
        rng = generator(config.loop.seed, place.epoch, image_id, "augment" + place.suffix)
        packed = config.device.augment_on == "device"
        tensors, geometry = crop_tensors(read_image(path), config.augment, rng, IMAGENET_MEAN_PIXEL, packed)
        low, high = (read_soft_maps(stored) for stored in self._store.scores(image_id))
        channels = crop_labels(_as_stored(low.maps), _as_stored(high.maps), geometry, self._stride)
        values = torch.full((256,), VOID, dtype=torch.int64)
        values[: len(low.classes)] = torch.from_numpy(low.classes.astype(np.int64))
        labels = values[channels]
        return image_id, tensors | {"labels": labels, "pairs": pair_counts(labels[None])}


def _as_stored(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(maps * 255).astype(np.uint8)
