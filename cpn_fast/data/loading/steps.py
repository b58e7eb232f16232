"""Which image stands where in which step, and the loader that brings them: the same for every kind of batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cpn_fast.data.loading.crops import JOINED
from cpn_fast.data.loading.parallel import ignore_stops, stops_held_back
from cpn_fast.data.loading.random import generator
from cpn_fast.files.descriptors import check_descriptors
from cpn_fast.files.errors import DataError

Crop = tuple[str, dict[str, torch.Tensor]]
"""Id of an image, and its tensors by their names in the batch."""


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Steps of one epoch: whole batches only, at least one.

    What is left of an epoch's permutation when the last whole batch is drawn is not shown in that epoch.

    Args:
        num_records: images of the split.
        batch_size: images per step over all processes.
    """
    return max(1, num_records // batch_size)


@dataclass(frozen=True)
class Place:
    """Where a crop comes from.

    Attributes:
        epoch: from 0.
        number: of the record.
        suffix: for the purpose of its random numbers: a record shown twice in an epoch (fewer records than a batch)
            needs other ones the second time.
    """

    epoch: int
    number: int
    suffix: str


def place_of(step: int, slot: int, seed: int, count: int, batch_size: int) -> Place:
    """The record in a slot of a step's batch: an epoch is a fresh permutation of all.

    Args:
        step: from 0.
        slot: place in the global batch.
        seed: of the run.
        count: number of records.
        batch_size: images per step over all processes.
    """
    epoch, within = divmod(step, steps_per_epoch(count, batch_size))
    repeat, place = divmod(within * batch_size + slot, count)
    return Place(epoch, int(_permutation(seed, epoch, count)[place]), f"-{repeat}" if repeat else "")


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, epoch, "", "order").permutation(count)


@dataclass(frozen=True)
class Span:
    """The part of a run's batches that one process gets.

    Attributes:
        start_step: first step.
        total_steps: one past the last step.
        rank: this process; it gets its contiguous part of every global batch.
        world_size: number of processes.
        passes: batches that it gets for each step, one after the other.
    """

    start_step: int
    total_steps: int
    rank: int = 0
    world_size: int = 1
    passes: int = 1


class _Steps(Sampler[list[tuple[int, int]]]):
    """Batch sampler: lists of (step, slot in the global batch) of this rank, one for each pass."""

    def __init__(self, span: Span, batch_size: int) -> None:
        self._share = batch_size // (span.world_size * span.passes)
        self._range = range(span.start_step, span.total_steps)
        self._passes = range(span.rank * span.passes, (span.rank + 1) * span.passes)

    def __len__(self) -> int:
        return len(self._range) * len(self._passes)

    def __iter__(self) -> Any:
        for step in self._range:
            for number in self._passes:
                yield [(step, slot) for slot in range(number * self._share, (number + 1) * self._share)]


def step_loader(
    crops: Dataset[Crop], span: Span, batch_size: int, workers: int
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """One pass over a span's batches: ids and tensors of each, stacked, or joined (`crops.JOINED`).

    Args:
        crops: by (step, slot).
        span: which steps, which process.
        batch_size: images per step over all processes.
        workers: loading processes.

    Raises:
        DataError: as `crops` does, also from a loading process; or where this process may not open as many files as the
            loading processes need.
    """
    if workers > 0:
        check_descriptors(workers)
    loader = DataLoader(
        _Told(crops),  # type: ignore[arg-type]
        batch_sampler=_Steps(span, batch_size),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # The loader seeds its workers from a generator: its own one, for torch's global one belongs to the model.
        generator=torch.Generator(),
    )
    with stops_held_back():
        batches = iter(loader)  # starts the workers
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Told(Dataset[Crop | DataError]):
    """Gives a DataError instead of raising it: torch would put a loading process's traceback into its message."""

    def __init__(self, crops: Dataset[Crop]) -> None:
        self._crops = crops

    def __getitem__(self, index: tuple[int, int]) -> Crop | DataError:
        try:
            return self._crops[index]
        except DataError as error:
            return error


def _collate(crops: list[Crop | DataError]) -> tuple[list[str], dict[str, torch.Tensor]] | DataError:
    read: list[Crop] = []
    for crop in crops:
        if isinstance(crop, DataError):
            return crop
        read.append(crop)
    together: dict[str, torch.Tensor] = {}
    for key in read[0][1]:
        parts = [tensors[key] for _, tensors in read]
        together[key] = torch.cat(parts) if key in JOINED else torch.stack(parts)
    return [name for name, _ in read], together


def _start_worker(worker: int) -> None:
    """One thread per worker, and no ear for stops.

    A terminal and a scheduler send them to the whole group: the parent ends the training, and needs its workers until
    the step and the checkpoint are done. A worker ends when the loader does, or when the parent is gone.
    """
    del worker
    torch.set_num_threads(1)
    ignore_stops()
