"""Images read ahead of the network, in batches of equal size."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.types import Record, Sample, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.max_side import reduce_image


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, or of which the network said nothing finite, and why."""

    record: Record
    error: str


def not_finite(record: Record, what: str) -> Failure:
    """The failure of an image for which a network gave NaN or infinity; `what` is e.g. "class maps"."""
    return Failure(
        record,
        f"{record.image_path}: the network's {what} hold NaN or infinity: its training diverged; train again with a "
        "lower --lr or pretrained --weights",
    )


@dataclass(frozen=True)
class InferenceOptions:
    """How images go through the network.

    Attributes:
        max_side: a longer image is reduced to this long side in pixels first, and the result enlarged back.
        batch_size: images of equal size that go through together.
        workers: threads that read images ahead of the network.
        per_scale: give the maps of every single scale beside the multi-scale ones.
        with_mask: read ground truth where there is one.
        use_labels: False ignores the images' labels; the network's scores stand in.
    """

    max_side: int = 1024
    batch_size: int = 1
    workers: int = 2
    per_scale: bool = False
    with_mask: bool = False
    use_labels: bool = True


Reduced = tuple[Sample, NDArray[np.uint8]]
"""What was read of an image, and the image uint8 [h, w, 3] as the network shall see it."""


def equal_sizes(
    source: Source, records: Sequence[Record], options: InferenceOptions
) -> Iterator[Failure | list[Reduced]]:
    """Images reduced to `max_side`, at most `batch_size` of one size together, read in threads ahead of their use.

    Args:
        source: reads the records.
        records: the images; their order may change where sizes differ and `batch_size` is above 1.
        options: see there.

    Yields:
        batches, and a Failure for each image that could not be read.
    """
    waiting: dict[tuple[int, ...], list[Reduced]] = defaultdict(list)
    for record, sample in _read_ahead(source, records, options):
        if isinstance(sample, str):
            yield Failure(record, sample)
            continue
        small = reduce_image(sample.image, options.max_side)
        batch = waiting[small.shape]
        batch.append((sample, small))
        if len(batch) >= options.batch_size:
            yield waiting.pop(small.shape)
        elif sum(map(len, waiting.values())) >= 8 * options.batch_size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _read_ahead(
    source: Source, records: Sequence[Record], options: InferenceOptions
) -> Iterator[tuple[Record, Sample | str]]:
    """Samples in order, or what is wrong with the file; few enough in flight that memory stays bounded."""

    def read(record: Record) -> Sample | str:
        try:
            return source.read(record, with_mask=options.with_mask)
        except (DataError, OSError) as error:
            return str(error)

    pending: deque[tuple[Record, Future[Sample | str]]] = deque()
    with ThreadPoolExecutor(max(1, options.workers), thread_name_prefix="decode") as pool:
        for record in records:
            pending.append((record, pool.submit(read, record)))
            if len(pending) > 2 * options.workers + options.batch_size:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()
