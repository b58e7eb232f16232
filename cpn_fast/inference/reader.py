"""Images read ahead of a network, in batches of equal size. Free of torch: every network's images come this way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.types import Record, Sample, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import bounded_map
from cpn_fast.files.max_side import reduce_image
from cpn_fast.files.threads import thread_pool

Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Failure(Generic[Item]):
    """An image that could not be read, or of which the network said nothing finite, and why."""

    record: Item
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


def samples(
    source: Source, records: Sequence[Record], options: InferenceOptions
) -> Iterator[Failure[Record] | list[Reduced]]:
    """Samples of a source, reduced to `max_side`, in batches of equal size; see `equal_sizes`."""

    def read(record: Record) -> Reduced:
        sample = source.read(record, with_mask=options.with_mask)
        return sample, reduce_image(sample.image, options.max_side)

    return equal_sizes(records, read, options.batch_size, options.workers)


def equal_sizes(
    items: Sequence[Item], read: Callable[[Item], tuple[Read, NDArray[np.uint8]]], batch_size: int, workers: int
) -> Iterator[Failure[Item] | list[tuple[Read, NDArray[np.uint8]]]]:
    """Images of one size together, read in threads ahead of their use; few enough that memory stays bounded.

    Args:
        items: what to read; their order may change where sizes differ and `batch_size` is above 1.
        read: from an item to whatever is known of it, and its image uint8 [h, w, 3] as the network shall see it; called
            in threads; may raise DataError or OSError.
        batch_size: most images that go through together.
        workers: threads.

    Yields:
        batches, and a Failure for each image that could not be read.
    """

    def attempt(item: Item) -> tuple[Read, NDArray[np.uint8]] | Failure[Item]:
        try:
            return read(item)
        except (DataError, OSError) as error:
            return Failure(item, str(error))

    waiting: dict[tuple[int, ...], list[tuple[Read, NDArray[np.uint8]]]] = defaultdict(list)
    with thread_pool(max(1, workers), "decode") as pool:
        for found in bounded_map(pool, attempt, items, 2 * workers + batch_size + 1):
            if isinstance(found, Failure):
                yield found
                continue
            shape = found[1].shape
            waiting[shape].append(found)
            if len(waiting[shape]) >= batch_size:
                yield waiting.pop(shape)
            elif sum(map(len, waiting.values())) >= 8 * batch_size:
                yield waiting.pop(max(waiting, key=lambda each: len(waiting[each])))
        yield from waiting.values()
