"""Superpixel maps of an image at three densities: made one by one or in batches on a device, and written to a file."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cpn_fast.config.training import AugmentOptions, PatchOptions
from cpn_fast.data.loading.augment import scaled_size
from cpn_fast.data.loading.parallel import available_cores
from cpn_fast.data.types import Record, Source
from cpn_fast.files.atomic import atomic_write_bytes
from cpn_fast.files.errors import DataError
from cpn_kernels.ops.superpixels import superpixels

LEVELS = 3
DEVICE_BATCH = 16
"""Images of one size whose maps a device makes at once."""


@dataclass(frozen=True)
class Entry:
    """One image in the cache.

    Attributes:
        path: its file.
        shares: share of the image that a crop sees, per level.
        asked: segments asked for, per level.
        actual: segments made, per level.
        computed: whether this run made them.
    """

    path: Path
    shares: tuple[float, ...]
    asked: tuple[int, ...]
    actual: tuple[int, ...]
    computed: bool


@dataclass(frozen=True)
class Picture:
    """An image whose maps are to be made.

    Attributes:
        path: of the file to be written.
        image: uint8 [h, w, 3] RGB, at the size of the maps.
        shares: share of the image that a crop sees, per level.
        asked: segments to ask for, per level.
    """

    path: Path
    image: np.ndarray
    shares: tuple[float, ...]
    asked: tuple[int, ...]


def level_shares(height: int, width: int, options: AugmentOptions) -> tuple[float, ...]:
    """Share of an image that a crop sees at the smallest, the (geometric) middle and the largest resize.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        options: crop side and resize range.

    Returns:
        Three falling numbers in (0, 1].
    """
    low, high = options.resize_range()
    shares = []
    for level in range(LEVELS):
        long_side = round(low * (high / low) ** (level / (LEVELS - 1)))
        rows, columns = scaled_size(height, width, long_side)
        shares.append(min(rows, options.crop) * min(columns, options.crop) / (rows * columns))
    return tuple(shares)


def read_picture(source: Source, path: Path, patch: PatchOptions, augment: AugmentOptions, record: Record) -> Picture:
    """Read an image at the size of its maps. Raises DataError naming the file where it cannot be read."""
    image = source.read(record).image
    shares = level_shares(image.shape[0], image.shape[1], augment)
    image = _reduced(image, augment.resize_range()[1])
    pixels = image.shape[0] * image.shape[1]
    asked = tuple(min(pixels, max(1, round(patch.segments / share))) for share in shares)
    return Picture(path, image, shares, asked)


def _reduced(image: np.ndarray, long_side: int) -> np.ndarray:
    """The image at no more than the size that training shows: a finer map could not be seen, only waited for."""
    height, width = image.shape[:2]
    if max(height, width) <= long_side:
        return np.ascontiguousarray(image)
    rows, columns = scaled_size(height, width, long_side)
    return np.array(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))


def make_maps(pictures: Sequence[Picture], patch: PatchOptions, device: torch.device) -> list[dict[int, np.ndarray]]:
    """SLIC of pictures of one size that ask for the same numbers of segments, as one batch.

    Args:
        pictures: at least one.
        patch: compactness and backend.
        device: where; a GPU where the backend has no CUDA form takes the way over the host.

    Returns:
        Per picture: asked number -> labels 0..n-1, uint16 (int32 past 65,535 segments) [h, w].
    """
    images = torch.from_numpy(np.stack([picture.image for picture in pictures])).to(device)
    maps: list[dict[int, np.ndarray]] = [{} for _ in pictures]
    for segments in sorted(set(pictures[0].asked)):
        labels = superpixels(images, segments, patch.compactness, backend=patch.backend).cpu().numpy()
        for of_picture, one in zip(maps, labels, strict=True):
            of_picture[segments] = one.astype(np.uint16) if int(one.max()) < 2**16 else one
    return maps


def encode_maps(picture: Picture, maps: dict[int, np.ndarray]) -> tuple[Entry, bytes]:
    """The file of a picture's maps, and its entry once it is written."""
    actual = tuple(int(maps[segments].max()) + 1 for segments in picture.asked)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"level{level}": maps[segments] for level, segments in enumerate(picture.asked)}
    shares, asked = np.array(picture.shares), np.array(picture.asked)
    np.savez_compressed(buffer, shares=shares, asked=asked, actual=np.array(actual), **arrays)
    return Entry(picture.path, picture.shares, picture.asked, actual, computed=True), buffer.getvalue()


def write_content(path: Path, content: bytes) -> None:
    """Write the file of a picture's maps. Raises DataError where it cannot be written."""
    try:
        atomic_write_bytes(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot write cached superpixels ({error.strerror}); set CPN_CACHE") from error


def write_maps(picture: Picture, maps: dict[int, np.ndarray]) -> Entry:
    """Write the file of a picture's maps. Raises DataError where it cannot be written."""
    entry, content = encode_maps(picture, maps)
    write_content(entry.path, content)
    return entry


def entries_by_device(
    found: Iterable[tuple[str, Entry | Picture]], patch: PatchOptions, device: torch.device
) -> Iterator[tuple[str, Entry]]:
    """Make the maps of pictures on a device, those of one size in batches, while threads write the files before.

    Args:
        found: (record id, entry that is there or picture without maps), in any order; helper processes that they come
            from must be running once the first is there, since none may be forked beside threads.
        patch: compactness and backend.
        device: where SLIC runs.

    Yields:
        (record id, entry), each once, in another order.
    """
    groups: dict[Any, list[tuple[str, Picture]]] = defaultdict(list)
    writing: list[tuple[str, Future[Entry]]] = []
    with ThreadPoolExecutor(available_cores()) as threads:

        def flush(group: list[tuple[str, Picture]]) -> Iterator[tuple[str, Entry]]:
            maps = make_maps([picture for _, picture in group], patch, device)
            # No more than one batch is being written while the next one is made.
            before, writing[:] = (
                list(writing),
                [
                    (name, threads.submit(write_maps, picture, of_picture))
                    for (name, picture), of_picture in zip(group, maps, strict=True)
                ],
            )
            group.clear()
            yield from ((name, future.result()) for name, future in before)

        for name, item in found:
            if isinstance(item, Entry):
                yield name, item
                continue
            group = groups[item.image.shape, item.asked]
            group.append((name, item))
            if len(group) == DEVICE_BATCH:
                yield from flush(group)
        for group in groups.values():
            if group:
                yield from flush(group)
        yield from ((name, future.result()) for name, future in writing)
