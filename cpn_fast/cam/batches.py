"""Training batches by step number: the same whatever the number of workers or processes, from any step on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from cpn_fast.cam.pixel_masks import PixelMasks
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.loading.augment import IMAGENET_MEAN_PIXEL, Geometry, grid_patches
from cpn_fast.data.loading.crops import crop_tensors, made_crops
from cpn_fast.data.loading.parallel import parallel_map
from cpn_fast.data.loading.random import generator, key64
from cpn_fast.data.loading.steps import Crop, Span, place_of, step_loader
from cpn_fast.data.superpixels.backend import hides_patches, hides_superpixels
from cpn_fast.data.superpixels.cache import SuperpixelCache
from cpn_fast.data.superpixels.device_maps import DeviceMaps, geometry_numbers
from cpn_fast.data.superpixels.online import online_patches, online_patches_of_batch
from cpn_fast.data.types import VOID, Batch, Record, Sample, Source
from cpn_fast.files.chosen import choose
from cpn_fast.files.errors import DataError
from cpn_fast.files.progress import SILENT, Progress
from cpn_kernels.ops.superpixels import backend_version, is_available


def mean_colour(source: Source, records: Sequence[Record]) -> tuple[float, float, float]:
    """Mean RGB of all pixels of all images, in [0, 1] (what the paper hides patches with); reads in parallel."""
    total, pixels = np.zeros(3), 0
    for colours, count in parallel_map(partial(_sum_colours, source), records):
        total += colours
        pixels += count
    red, green, blue = (total / max(pixels, 1) / 255.0).tolist()
    return red, green, blue


def _sum_colours(source: Source, record: Record) -> tuple[np.ndarray, int]:
    image = source.read(record).image
    return image.sum((0, 1), dtype=np.float64), image.shape[0] * image.shape[1]


class BatchStream:
    """Batches of steps start_step .. total_steps - 1, as CPU tensors (superpixels on `map_device` where it is given,
    images there where `--augment-on device` makes them there).

    A step's batch depends on the config's seed, the step number and the records alone. An epoch is a fresh
    permutation; with fewer records than a batch holds, they are shown again with other augmentations.

    Args:
        source: reads the images.
        records: the split's records in their stable order, each with image labels.
        config: seed, batch size, augmentation, patches, workers.
        start_step: first step.
        total_steps: one past the last step.
        rank: this process; it gets its contiguous part of every global batch.
        world_size: number of processes.
        cache: prepared superpixels; None = made and prepared here where the method needs them.
        fill: colour of crop padding, uint8 RGB.
        map_device: keep cached superpixels there and take the patches of the crops there; where the backend runs on it,
            missing maps, and with `online` the superpixels of the crops, are made there too. With
            `--augment-on device` the crops as well. None = on the host.
        progress: where the making of superpixels is shown.
        masks: pixel labels of the records; None = none.
        passes: batches of each step.

    Raises:
        DataError: for no records, records without labels, a batch that the processes cannot share evenly, or a
            superpixel backend that is not installed.
    """

    def __init__(
        self,
        source: Source,
        records: Sequence[Record],
        config: TrainConfig,
        start_step: int,
        total_steps: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        cache: SuperpixelCache | None = None,
        fill: tuple[int, int, int] = IMAGENET_MEAN_PIXEL,
        map_device: torch.device | None = None,
        progress: Progress = SILENT,
        masks: PixelMasks | None = None,
        passes: int = 1,
    ) -> None:
        _check(source, records, config, world_size)
        slic_device = None
        if map_device is not None and hides_superpixels(config) and is_available(map_device, config.patch.backend):
            slic_device = map_device
        if cache is None and needs_superpixels(config):
            cache = SuperpixelCache(source, records, config.patch, config.augment)
            cache.prepare(progress=progress is not SILENT, device=slic_device)
        self._maps = None
        if cache is not None and map_device is not None:
            self._maps = DeviceMaps(cache, records, map_device)
        self._online = slic_device if cache is None else None
        self._device = (map_device or torch.device("cpu")) if config.device.augment_on == "device" else None
        if self._device is not None and config.patch.superpixels == "online" and hides_superpixels(config):
            self._online = slic_device or torch.device("cpu")  # the loading processes have no crop to look at
        self._side, self._fill, self._patch = config.augment.crop, fill, config.patch
        self._pairs = hides_patches(config)
        geometries = self._maps is not None or self._online is not None
        self._crops = _Crops(source, records, config, cache, fill, geometries, masks)
        self._span = Span(start_step, total_steps, rank, world_size, passes)
        self._batch_size, self._workers = config.loop.batch_size, config.device.loaders

    def __len__(self) -> int:
        """Steps that are left."""
        return self._span.total_steps - self._span.start_step

    def __iter__(self) -> Iterator[Batch]:
        """One pass from start_step on."""
        for ids, tensors in step_loader(self._crops, self._span, self._batch_size, self._workers):
            if self._device is not None:
                tensors["images"] = made_crops(tensors, self._side, self._fill, self._device)
            if self._maps is not None:
                tensors["patches"] = self._maps.crops(tensors.pop("geometry"), self._side)
            elif self._online is not None:
                tensors["patches"] = self._online_patches(tensors, self._online)
            elif not self._pairs:
                tensors["patches"] = no_patches(len(ids))
            yield Batch(tuple(ids), **tensors)

    def _online_patches(self, tensors: dict[str, torch.Tensor], device: torch.device) -> torch.Tensor:
        images, geometry = tensors["images"], tensors.pop("geometry")
        if device.type == "cpu":  # waits for the images where a GPU has made them, and the backend is not for one
            return online_patches_of_batch(images.cpu(), geometry, self._patch)
        # Pinned by the loader where there is a GPU, so that the copy is queued like everything after it.
        tensors["images"] = images.to(device, non_blocking=True)
        return online_patches_of_batch(tensors["images"], geometry, self._patch)


def no_patches(count: int) -> torch.Tensor:
    """What a batch of `count` crops has for patches where nothing is hidden: int32 zeros [count, 1, 1]."""
    return torch.zeros(count, 1, 1, dtype=torch.int32)


def needs_superpixels(config: TrainConfig) -> bool:
    """Whether cached superpixels are needed: not for other methods, grid patches, or superpixels made of each crop."""
    return hides_superpixels(config) and config.patch.superpixels == "cached"


def _check(source: Source, records: Sequence[Record], config: TrainConfig, world_size: int) -> None:
    if not records:
        raise DataError(f"{source.spec}: no images to train on")
    if config.loop.batch_size < 1 or config.loop.batch_size % world_size:
        raise DataError(
            f"batch size {config.loop.batch_size} cannot be shared by {world_size} processes; "
            f"choose a multiple of {world_size}"
        )
    if hides_superpixels(config):
        try:
            backend_version(config.patch.backend)
        except ImportError as error:
            raise DataError(f"--patch.backend {config.patch.backend}: {error}") from error
    bare = choose(records, lambda record: record.labels is None)
    if bare:
        raise DataError(
            f"{bare[0].image_path}: no image labels ({len(bare)} of {len(records)} images have none); training needs "
            "them: add labels or leave these images out of the split"
        )


class _Crops(Dataset[Crop]):
    """Augmented crops by (step, slot)."""

    def __init__(
        self,
        source: Source,
        records: Sequence[Record],
        config: TrainConfig,
        cache: SuperpixelCache | None,
        fill: tuple[int, int, int],
        geometries: bool,
        masks: PixelMasks | None = None,
    ) -> None:
        self._source = source
        self._records = records
        self._config = config
        self._cache = cache
        self._fill = fill
        self._geometries = geometries
        self._masks = masks

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: tuple[int, int]) -> Crop:
        config, count = self._config, len(self._records)
        place = place_of(*index, config.loop.seed, count, config.loop.batch_size)
        epoch, number, suffix = place.epoch, place.number, place.suffix
        record = self._records[number]
        sample = self._source.read(record)
        rng = generator(config.loop.seed, epoch, record.id, f"augment{suffix}")
        packed = config.device.augment_on == "device"
        tensors, geometry = crop_tensors(sample.image, config.augment, rng, self._fill, packed)
        tensors["keys"] = torch.tensor(key64(config.loop.seed, epoch, record.id, f"hide{suffix}"))
        tensors["labels"] = torch.from_numpy(_labels(record, sample))
        if self._masks is not None:
            target = geometry.apply_map(self._masks.read(record, sample.image), fill=VOID).astype(np.uint8)
            tensors["targets"] = torch.from_numpy(target)
        if self._geometries:
            level = 0 if self._cache is None else self._cache.level(record, geometry.share_seen)
            tensors["geometry"] = torch.from_numpy(geometry_numbers(geometry, number, level))
        elif hides_patches(config):
            crop = None if packed else tensors["images"].numpy()
            patches = self._patches(record, crop, geometry, epoch, f"grid{suffix}")
            tensors["patches"] = torch.from_numpy(patches)
        return record.id, tensors

    def _patches(
        self, record: Record, crop: np.ndarray | None, geometry: Geometry, epoch: int, purpose: str
    ) -> np.ndarray:
        config = self._config
        if self._cache is not None:
            return geometry.apply_map(self._cache.get(record, geometry.share_seen))
        if hides_superpixels(config):
            assert crop is not None
            return online_patches(crop, geometry, config.patch)
        rng = generator(config.loop.seed, epoch, record.id, purpose)
        return grid_patches(geometry, config.patch.grid_sides, rng)


def _labels(record: Record, sample: Sample) -> np.ndarray:
    if sample.labels is None:
        raise DataError(f"{record.image_path}: no image labels; training needs them")
    return sample.labels
