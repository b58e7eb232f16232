"""How long making the patches of one image takes: each way on the same crops, in turns, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from cpn_fast.config.training import TrainConfig
from cpn_fast.console.terminal import item_progress
from cpn_fast.data.loading.augment import Geometry, augment, grid_patches
from cpn_fast.data.loading.random import generator
from cpn_fast.data.superpixels.cache import SuperpixelCache
from cpn_fast.data.superpixels.maps import Picture, make_maps, read_picture
from cpn_fast.data.types import Record, Source
from cpn_fast.reproduce.summary import Measurement
from cpn_fast.reproduce.tables import CACHE_MADE, CACHE_READ, GRID, SLIC_BACKENDS, Row, slic_row
from cpn_kernels.ops.superpixels import Backend, backend_version, superpixels

IMAGES = 50
"""Images that are timed where the command line names no number."""
WARM = 3
"""Crops whose times are not counted, at the beginning."""


@dataclass(frozen=True)
class Crop:
    """A training crop.

    Attributes:
        image: uint8 [crop, crop, 3].
        geometry: where its pixels come from.
        record: of the whole image.
        picture: the whole image, as the cache cuts it.
        rng: draws the side of its grid.
    """

    image: np.ndarray
    geometry: Geometry
    record: Record
    picture: Picture
    rng: np.random.Generator


Way = Callable[[Crop], object]


def measurements(
    rows: Sequence[Row], source: Source, records: Sequence[Record], config: TrainConfig, seeds: Sequence[int]
) -> Iterator[Measurement]:
    """Mean seconds per image of each way to make patches, for each seed on crops of its own.

    All ways are timed on a crop, one after another, before the next crop comes, so that other load on the machine meets
    all of them. Reading and augmenting the image is not counted.

    Args:
        rows: of the table `time`.
        source: reads the images.
        records: the images.
        config: `augment` and `patch` are used.
        seeds: of the crops.

    Yields:
        One measurement per row and seed; a superpixel backend that is not installed has no figure.

    Raises:
        DataError: if an image cannot be read, or the superpixel cache not be written.
    """
    cache = SuperpixelCache(source, records, config.patch, config.augment)
    cache.prepare(progress=False)
    ways, missing = ways_to_patch(config, cache)
    about = {"images": len(records), "crop": config.augment.crop, "segments": config.patch.segments}
    for seed in seeds:
        spent = _seconds(ways, source, records, config, seed)
        for row in rows:
            if row.name in missing:
                yield Measurement(row.name, seed, {}, "", {**about, "failure": missing[row.name]})
            else:
                yield Measurement(row.name, seed, {"": {"seconds": spent[row.name] / len(records)}}, "", about)


def _seconds(
    ways: Mapping[str, Way], source: Source, records: Sequence[Record], config: TrainConfig, seed: int
) -> dict[str, float]:
    """Row name -> seconds spent on one crop of every record."""
    for record in records[:WARM]:
        crop = crop_of(source, record, config, seed)
        for way in ways.values():
            way(crop)
    spent = dict.fromkeys(ways, 0.0)
    with item_progress(Console(stderr=True), f"time, seed {seed}", len(records)) as advance:
        for record in records:
            crop = crop_of(source, record, config, seed)
            for name, way in ways.items():
                started = time.perf_counter()
                way(crop)
                spent[name] += time.perf_counter() - started
            advance(1)
    return spent


def crop_of(source: Source, record: Record, config: TrainConfig, seed: int) -> Crop:
    """The crop that training sees of an image in epoch 0. Raises DataError if the image cannot be read."""
    sample = source.read(record)
    image, geometry = augment(sample.image, config.augment, generator(seed, 0, record.id, "augment"))
    picture = read_picture(source, Path(), config.patch, config.augment, record)
    return Crop(image, geometry, record, picture, generator(seed, 0, record.id, "grid"))


def ways_to_patch(config: TrainConfig, cache: SuperpixelCache) -> tuple[dict[str, Way], dict[str, str]]:
    """Row name -> the function of a crop that is timed, and row name -> why there is none.

    Args:
        config: `patch` is used.
        cache: prepared.
    """
    patch = config.patch

    def slic(backend: Backend, crop: Crop) -> Tensor:
        return superpixels(torch.from_numpy(crop.image)[None], patch.segments, patch.compactness, backend=backend)

    ways: dict[str, Way] = {}
    missing: dict[str, str] = {}
    for backend in SLIC_BACKENDS:
        row = slic_row(backend)
        try:
            backend_version(backend)
        except ImportError as error:
            missing[row] = f"not installed: {error}"
        else:
            ways[row] = partial(slic, backend)
    return ways | {
        GRID: lambda crop: grid_patches(crop.geometry, patch.grid_sides, crop.rng),
        CACHE_MADE: lambda crop: make_maps([crop.picture], patch, torch.device("cpu")),
        CACHE_READ: lambda crop: crop.geometry.apply_map(cache.get(crop.record, crop.geometry.share_seen)),
    }, missing
