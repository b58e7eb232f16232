"""Training batches by step number: the same whatever the number of workers or processes, from any step on."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cpn_fast.config import TrainConfig
from cpn_fast.data.augment import IMAGENET_MEAN_PIXEL, Geometry, augment, grid_patches
from cpn_fast.data.device_maps import DeviceMaps, geometry_numbers
from cpn_fast.data.online_patches import online_patches, online_patches_of_batch
from cpn_fast.data.parallel import parallel_map
from cpn_fast.data.random import generator, key64
from cpn_fast.data.superpixel_cache import SuperpixelCache
from cpn_fast.data.types import Batch, Record, Sample, Source
from cpn_fast.files.errors import DataError
from cpn_kernels.superpixels import backend_version, runs_on

GRACE_SECONDS = 30


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Steps of one epoch: whole batches only, at least one.

    What is left of an epoch's permutation when the last whole batch is drawn is not shown in that epoch.

    Args:
        num_records: images of the split.
        batch_size: images per step over all processes.
    """
    return max(1, num_records // batch_size)


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
    """Batches of steps start_step .. total_steps - 1, as CPU tensors (superpixels on `map_device` where it is given).

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
            missing maps, and with `online` the superpixels of the crops, are made there too. None = on the host.

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
    ) -> None:
        _check(source, records, config, world_size)
        slic_device = None
        if map_device is not None and hides_superpixels(config) and runs_on(map_device, config.patch.backend):
            slic_device = map_device
        if cache is None and needs_superpixels(config):
            cache = SuperpixelCache(source, records, config.patch, config.augment)
            cache.prepare(progress=rank == 0, device=slic_device)
        self._maps = None
        if cache is not None and map_device is not None:
            self._maps = DeviceMaps(cache, records, map_device)
        self._online = slic_device if cache is None else None
        self._patch = config.patch
        geometries = self._maps is not None or self._online is not None
        self._crops = _Crops(source, list(records), config, cache, fill, geometries)
        self._steps = _Steps(start_step, total_steps, config.batch_size, rank, world_size)
        self._workers = config.workers

    def __len__(self) -> int:
        """Steps that are left."""
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        """One pass from start_step on."""
        loader = DataLoader(
            self._crops,
            batch_sampler=self._steps,
            num_workers=self._workers,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            # The loader seeds its workers from a generator: its own one, for torch's global one belongs to the model.
            generator=torch.Generator(),
        )
        for ids, tensors in loader:
            if self._maps is not None:
                tensors["patches"] = self._maps.crops(tensors.pop("geometry"), tensors["images"].shape[1])
            elif self._online is not None:
                # Pinned by the loader where there is a GPU, so that the copy is queued like everything after it.
                images = tensors["images"] = tensors["images"].to(self._online, non_blocking=True)
                tensors["patches"] = online_patches_of_batch(images, tensors.pop("geometry"), self._patch)
            yield Batch(tuple(ids), **tensors)


def needs_superpixels(config: TrainConfig) -> bool:
    """Whether cached superpixels are needed: not for other methods, grid patches, or superpixels made of each crop."""
    return hides_superpixels(config) and config.patch.superpixels == "cached"


def hides_superpixels(config: TrainConfig) -> bool:
    """Whether the patches of this run are superpixels."""
    return config.method == "cpn" and config.patch.kind == "superpixel"


def _check(source: Source, records: Sequence[Record], config: TrainConfig, world_size: int) -> None:
    if not records:
        raise DataError(f"{source.spec}: no images to train on")
    if config.batch_size < 1 or config.batch_size % world_size:
        raise DataError(
            f"batch size {config.batch_size} cannot be shared by {world_size} processes; "
            f"choose a multiple of {world_size}"
        )
    if hides_superpixels(config):
        try:
            backend_version(config.patch.backend)
        except ImportError as error:
            raise DataError(f"--patch.backend {config.patch.backend}: {error}") from error
    bare = [record for record in records if record.labels is None]
    if bare:
        raise DataError(
            f"{bare[0].image_path}: no image labels ({len(bare)} of {len(records)} images have none); training needs "
            "them: add labels or leave these images out of the split"
        )


class _Steps(Sampler[list[tuple[int, int]]]):
    """Batch sampler: lists of (step, slot in the global batch) of this rank."""

    def __init__(self, start: int, stop: int, batch_size: int, rank: int, world_size: int) -> None:
        share = batch_size // world_size
        self._range = range(start, stop)
        self._slots = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._range:
            yield [(step, slot) for slot in self._slots]


class _Crops(Dataset[tuple[str, dict[str, torch.Tensor]]]):
    """Augmented crops by (step, slot)."""

    def __init__(
        self,
        source: Source,
        records: list[Record],
        config: TrainConfig,
        cache: SuperpixelCache | None,
        fill: tuple[int, int, int],
        geometries: bool,
    ) -> None:
        self._source = source
        self._records = records
        self._config = config
        self._cache = cache
        self._fill = fill
        self._geometries = geometries

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: tuple[int, int]) -> tuple[str, dict[str, torch.Tensor]]:
        step, slot = index
        config, count = self._config, len(self._records)
        epoch, within = divmod(step, steps_per_epoch(count, config.batch_size))
        repeat, place = divmod(within * config.batch_size + slot, count)
        number = int(_permutation(config.seed, epoch, count)[place])
        record = self._records[number]
        # A record shown twice in an epoch (fewer records than a batch) needs other numbers the second time.
        suffix = f"-{repeat}" if repeat else ""
        sample = self._source.read(record)
        rng = generator(config.seed, epoch, record.id, f"augment{suffix}")
        crop, geometry = augment(sample.image, config.augment, rng, self._fill)
        tensors = {
            "images": torch.from_numpy(crop),
            "keys": torch.tensor(key64(config.seed, epoch, record.id, f"hide{suffix}")),
            "labels": torch.from_numpy(_labels(record, sample)),
        }
        if self._geometries:
            level = 0 if self._cache is None else self._cache.level(record, geometry.share_seen)
            tensors["geometry"] = torch.from_numpy(geometry_numbers(geometry, number, level))
        else:
            patches = self._patches(record, crop, geometry, epoch, f"grid{suffix}")
            tensors["patches"] = torch.from_numpy(patches)
        return record.id, tensors

    def _patches(self, record: Record, crop: np.ndarray, geometry: Geometry, epoch: int, purpose: str) -> np.ndarray:
        config = self._config
        if self._cache is not None:
            return geometry.apply_map(self._cache.get(record, geometry.share_seen))
        if hides_superpixels(config):
            return online_patches(crop, geometry, config.patch)
        if config.method == "cpn":
            rng = generator(config.seed, epoch, record.id, purpose)
            return grid_patches(geometry, config.patch.grid_sides, rng)
        return geometry.apply_map(np.zeros((1, 1), np.int32))


def _labels(record: Record, sample: Sample) -> np.ndarray:
    if sample.labels is None:
        raise DataError(f"{record.image_path}: no image labels; training needs them")
    return sample.labels


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, epoch, "", "order").permutation(count)


def _collate(crops: list[tuple[str, dict[str, torch.Tensor]]]) -> tuple[list[str], dict[str, torch.Tensor]]:
    names = [name for name, _ in crops]
    return names, {key: torch.stack([tensors[key] for _, tensors in crops]) for key in crops[0][1]}


def _start_worker(worker: int) -> None:
    """One thread per worker; a signal to the whole group leaves the parent time for its checkpoint."""
    del worker
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
