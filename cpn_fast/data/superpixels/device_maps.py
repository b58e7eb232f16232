"""Superpixel maps kept in device memory, from which the patches of a batch of crops are taken there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cpn_fast.data.loading.augment import Geometry
from cpn_fast.data.superpixels.cache import SuperpixelCache
from cpn_fast.data.superpixels.maps import LEVELS
from cpn_fast.data.types import Record
from cpn_fast.device import free_memory
from cpn_kernels.ops.patch_crop import LARGEST, patch_crop, reference

SHARE = 0.25
"""Of the memory that is free on a GPU as the maps are laid there: the rest is the network's. VOC's 10,582 images
(500 x 375, three levels, 2 bytes) are 11.9 GB."""


def map_budget(device: torch.device) -> int:
    """Bytes of device memory that maps may take by themselves."""
    free = free_memory(device)
    return 2**34 if free is None else int(SHARE * free)


GEOMETRY_NUMBERS = 11


def geometry_numbers(geometry: Geometry, image: int, level: int) -> np.ndarray:
    """A crop in the numbers that `DeviceMaps.crops` reads.

    Args:
        geometry: of the crop.
        image: place of its record among those of the maps.
        level: of the cache (`SuperpixelCache.level`).

    Returns:
        int64 [GEOMETRY_NUMBERS].
    """
    parts = (geometry.scaled, (int(geometry.flip), image, level), geometry.source, geometry.target, geometry.extent)
    return np.array([number for part in parts for number in part], np.int64)


class DeviceMaps:
    """All maps of a prepared cache as one array in device memory; past the budget, in pinned host memory.

    A map on the device costs the host nothing in a step; one of those past the budget is copied over with the batch.

    Args:
        cache: prepared, of all the records.
        records: the images, in the order in which `geometry_numbers` counts them.
        device: where the maps are kept and the patches are made.
        budget: bytes on the device; None = a share of what is free there.
    """

    def __init__(
        self, cache: SuperpixelCache, records: Sequence[Record], device: torch.device, budget: int | None = None
    ) -> None:
        self.device = device
        budget = map_budget(device) if budget is None else budget
        sizes = np.array([cache.map_size(record) for record in records], np.int64).reshape(-1, 2)
        pixels = np.repeat(sizes.prod(1), LEVELS)
        wide = any(max(cache.segment_counts(record)) > 2**16 for record in records)
        # Labels are uint16 as on disk; torch indexes int16, whose bits are put right when they are read.
        dtype = torch.int32 if wide else torch.int16
        ends = np.cumsum(pixels)
        on_device = int(np.searchsorted(ends * dtype.itemsize, budget, side="right"))
        self._resident = on_device
        self._split = int(ends[on_device - 1]) if on_device else 0
        total = int(ends[-1]) if len(ends) else 0
        self._maps = torch.empty(self._split, dtype=dtype, device=device)
        self._rest = torch.empty(total - self._split, dtype=dtype, pin_memory=device.type == "cuda")
        self._begin = np.concatenate([[0], ends]).astype(np.int64)
        self._fill(cache, records)
        self._sizes = sizes

    @property
    def bytes_on_device(self) -> int:
        """Memory of the resident maps."""
        return self._maps.numel() * self._maps.element_size()

    @property
    def bytes_on_host(self) -> int:
        """Memory of the maps past the budget."""
        return self._rest.numel() * self._rest.element_size()

    def _fill(self, cache: SuperpixelCache, records: Sequence[Record]) -> None:
        kind = np.int16 if self._maps.dtype == torch.int16 else np.int32
        for number, record in enumerate(records):
            for level, labels in enumerate(cache.levels(record)):
                place = LEVELS * number + level
                begin, end = int(self._begin[place]), int(self._begin[place + 1])
                flat = torch.from_numpy(labels.astype(kind).ravel())
                if place < self._resident:
                    self._maps[begin:end] = flat.to(self.device)
                else:
                    self._rest[begin - self._split : end - self._split] = flat

    def crops(self, geometries: Tensor, crop: int) -> Tensor:
        """The patches of crops, as `Geometry.apply_map` takes them from the maps: one copy and one kernel on a GPU.

        Args:
            geometries: int64 [B, GEOMETRY_NUMBERS] on the CPU, rows of `geometry_numbers`.
            crop: side of the crops in pixels.

        Returns:
            int32 [B, crop, crop] on the device, -1 where a crop shows no image.
        """
        numbers = geometries.numpy()
        scaled_and_flip, image, level, places = numbers[:, :3], numbers[:, 3], numbers[:, 4], numbers[:, 5:]
        maps, begins = self._with_guests(LEVELS * image + level)
        rows = np.concatenate([begins[:, None], self._sizes[image], scaled_and_flip, places], axis=1)
        small = (2 * rows[:, 1:3] * rows[:, 3:5] < LARGEST).all()
        return (patch_crop if small else reference.patch_crop)(maps, self._to_device(rows), crop)

    def _with_guests(self, places: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The array to read from, and where each crop's map begins in it: resident maps, then copies of others."""
        if (places < self._resident).all():
            return self._maps, self._begin[places]
        # Crops of resident maps that meet a guest in their batch are read from a copy too: one array, one gather.
        starts, pieces, length = {}, [], 0
        for place in np.unique(places).tolist():
            begin, end = int(self._begin[place]), int(self._begin[place + 1])
            if place < self._resident:
                pieces.append(self._maps[begin:end])
            else:
                piece = self._rest[begin - self._split : end - self._split]
                pieces.append(piece.to(self.device, non_blocking=True))
            starts[place], length = length, length + end - begin
        return torch.cat(pieces), np.array([starts[place] for place in places.tolist()], np.int64)

    def _to_device(self, numbers: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(numbers)
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)
