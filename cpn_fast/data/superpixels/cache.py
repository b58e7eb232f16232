"""Superpixel maps of a split, computed once and kept on disk; three densities per image."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, Progress

from cpn_fast.config.training import AugmentOptions, PatchOptions
from cpn_fast.data.loading.parallel import folder_lock, parallel_map
from cpn_fast.data.superpixels.entries import Entries, maps_path
from cpn_fast.data.superpixels.maps import (
    LEVELS,
    Entry,
    Picture,
    entries_by_device,
    make_maps,
    read_picture,
    write_maps,
)
from cpn_fast.data.superpixels.sent import MapsOfImages, Missing
from cpn_fast.data.types import Record, Source
from cpn_fast.files.arrays import DAMAGE, ArraySpec, npz_shape, read_npz
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS
from cpn_fast.files.jobs import LOCAL, Engine
from cpn_fast.files.regular import read_regular
from cpn_kernels.ops.superpixels import backend_version, reference, resolve_backend

logger = logging.getLogger(__name__)

FORMAT = 1
"""Changes with the files' layout or the meaning of their parameters."""

CHUNK = 512
"""Images that are read ahead at most where a device makes the maps."""

_MAP = ArraySpec("ui", 2, DEFAULT_MAX_PIXELS)
_ABOUT = {
    "shares": ArraySpec("f", 1, LEVELS),
    "asked": ArraySpec("ui", 1, LEVELS),
    "actual": ArraySpec("ui", 1, LEVELS),
}


@dataclass(frozen=True)
class CacheSummary:
    """What `SuperpixelCache.prepare` found and did.

    Attributes:
        computed: images whose maps were computed now.
        reused: images whose maps were on disk.
        asked: segments asked for per level, mean over the images; coarse to fine.
        actual: segments that SLIC made per level, mean over the images.
        actual_range: smallest and largest actual count per level.
        seconds: wall time.
    """

    computed: int
    reused: int
    asked: tuple[float, ...]
    actual: tuple[float, ...]
    actual_range: tuple[tuple[int, int], ...]
    seconds: float


def default_cache_dir() -> Path:
    """Where maps are kept: `$CPN_CACHE/superpixels`, else `~/.cache/cpn_fast/superpixels`."""
    cache = os.environ.get("CPN_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "cpn_fast") / "superpixels"


class SuperpixelCache:
    """SLIC maps of every image at three densities, so that a crop of any scale sees about S_N segments.

    A level asks for S_N divided by the share of the image that a crop sees. Maps lie over the whole image, reduced to
    the largest size that training shows. Files are keyed by the image file's bytes and all parameters, so a changed
    image or setting never meets an old map, and one folder serves every data set.

    Args:
        source: reads the images.
        records: the images.
        patch: S_N, compactness, backend and the folder.
        augment: crop side and resize range.
    """

    def __init__(self, source: Source, records: Sequence[Record], patch: PatchOptions, augment: AugmentOptions) -> None:
        self.source = source
        self.records = records
        self.patch = patch
        self.augment = augment
        self.folder = Path(patch.cache_dir) if patch.cache_dir is not None else default_cache_dir()
        self._entries = Entries(records, self.folder)

    def prepare(
        self,
        progress: bool = True,
        processes: int | None = None,
        device: torch.device | None = None,
        engine: Engine = LOCAL,
    ) -> CacheSummary:
        """Compute what is missing, in parallel processes; several calls at once wait for one another.

        Args:
            progress: show a bar on the terminal.
            processes: how many read and compute; None = one per core.
            device: compute there, images of one size in batches, and let the processes only read. The files are the
                same, since native labels do not depend on the device. None = in the processes.
            engine: where maps are computed otherwise, the processes then only looking for what is missing: the workers
                of a cluster. The files are written here.

        Returns:
            Counts of images and of segments.

        Raises:
            DataError: for the first image that cannot be read, or a damaged or unwritable cache folder.
        """
        start = time.perf_counter()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot make the superpixel cache ({error.strerror}); set CPN_CACHE"
            ) from error
        bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), disable=not progress)
        with folder_lock(self.folder), bar:
            if engine is not LOCAL:
                results = self._computed_by(engine, processes)
            else:
                results = self._computed(processes) if device is None else self._computed_on(device, processes)
            for name, entry in bar.track(results, len(self.records), description="superpixels"):
                self._entries.put(name, entry)
        summary = _summarise(self._entries, time.perf_counter() - start)
        logger.info(
            "superpixels: %d computed, %d on disk, segments asked %s, made %s",
            summary.computed,
            summary.reused,
            [round(n) for n in summary.asked],
            [round(n) for n in summary.actual],
        )
        return summary

    def _computed(self, processes: int | None) -> Iterator[tuple[str, Entry]]:
        work = partial(_compute, self.source, self.folder, self.patch, self.augment)
        return parallel_map(work, self.records, processes)

    def _computed_by(self, engine: Engine, processes: int | None) -> Iterator[tuple[str, Entry]]:
        todo: list[Missing] = []
        for record, (path, entry) in zip(
            self.records, parallel_map(partial(_look, self.folder, self.patch, self.augment), self.records, processes),
            strict=True,
        ):  # fmt: skip
            if entry is None:
                todo.append((record, path))
            else:
                yield record.id, entry
        if not todo:
            return
        patch = replace(self.patch, backend=resolve_backend(self.patch.backend))
        work = MapsOfImages(
            source=self.source, patch=patch, augment=self.augment, made_by=backend_version(patch.backend)
        )
        with engine.crew(work) as crew:
            for made in crew.entries(todo):
                if made["status"] != "ok":
                    raise DataError(made["error"])
                yield made["id"], made["maps"]

    def _computed_on(self, device: torch.device, processes: int | None) -> Iterator[tuple[str, Entry]]:
        work = partial(_find, self.source, self.folder, self.patch, self.augment)
        for begin in range(0, len(self.records), CHUNK):
            found = parallel_map(work, self.records[begin : begin + CHUNK], processes)
            yield from entries_by_device(found, self.patch, device)

    def get(self, record: Record, share_seen: float) -> np.ndarray:
        """The map whose density suits a crop.

        Args:
            record: one of the records that were prepared.
            share_seen: share of the image that the crop shows, in (0, 1] (`Geometry.share_seen`).

        Returns:
            uint16 (int32 past 65,535 segments) [h, w] over the whole image, segments 0..n-1.

        Raises:
            DataError: for a record that was not prepared or a file that went missing.
        """
        entry = self._entry(record)
        level = _level(entry, share_seen)
        try:
            return read_npz(entry.path, {f"level{level}": _MAP})[f"level{level}"]
        except DAMAGE as error:
            raise _unreadable(entry.path, error) from error

    def level(self, record: Record, share_seen: float) -> int:
        """The level that `get` takes: the one whose share of the image is nearest, by ratio. Raises as `get` does."""
        return _level(self._entry(record), share_seen)

    def levels(self, record: Record) -> list[np.ndarray]:
        """All maps of a prepared record, coarse to fine, all of one size. Raises as `get` does."""
        entry = self._entry(record)
        try:
            return list(read_npz(entry.path, {f"level{level}": _MAP for level in range(LEVELS)}).values())
        except DAMAGE as error:
            raise _unreadable(entry.path, error) from error

    def map_size(self, record: Record) -> tuple[int, int]:
        """Height and width of the maps of a prepared record, in pixels, read alone. Raises as `get` does."""
        entry = self._entry(record)
        try:
            height, width = npz_shape(entry.path, "level0")
        except DAMAGE as error:
            raise _unreadable(entry.path, error) from error
        return height, width

    def _entry(self, record: Record) -> Entry:
        entry = self._entries.find(record.id)
        if entry is None:
            raise DataError(
                f"{record.image_path}: no superpixels for {record.id!r}; call prepare() on its records first"
            )
        return entry

    def segment_counts(self, record: Record) -> tuple[int, ...]:
        """Segments that SLIC made of a prepared record, per level, coarse to fine."""
        return self._entry(record).actual


def _level(entry: Entry, share_seen: float) -> int:
    return int(np.argmin([abs(math.log(share / share_seen)) for share in entry.shares]))


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cached superpixels cannot be read ({error}); delete the file and start again")


def _find(
    source: Source, folder: Path, patch: PatchOptions, augment: AugmentOptions, record: Record
) -> tuple[str, Entry | Picture]:
    """The record's id with its entry, or with the picture where there are no maps yet."""
    path, entry = _look(folder, patch, augment, record)
    return record.id, entry or read_picture(source, path, patch, augment, record)


def _look(folder: Path, patch: PatchOptions, augment: AugmentOptions, record: Record) -> tuple[Path, Entry | None]:
    """The file of the record's maps, and its entry; None where there are no maps yet."""
    try:
        content = read_regular(record.image_path)
    except OSError as error:
        raise DataError(f"{record.image_path}: cannot be read ({error.strerror})") from error
    salt = _parameter_digest(patch, augment)
    key = hashlib.blake2b(content, digest_size=16, person=b"superpixels", salt=salt).hexdigest()
    path = maps_path(folder, key)
    return path, _read_entry(path)


def _compute(
    source: Source, folder: Path, patch: PatchOptions, augment: AugmentOptions, record: Record
) -> tuple[str, Entry]:
    name, found = _find(source, folder, patch, augment, record)
    if isinstance(found, Entry):
        return name, found
    return name, write_maps(found, make_maps([found], patch, torch.device("cpu"))[0])


def _parameter_digest(patch: PatchOptions, augment: AugmentOptions) -> bytes:
    """16 bytes of everything but the image that decides over a map, the backend and its version included."""
    options = (patch.segments, float(patch.compactness), augment.crop, augment.resize_range())
    text = repr((FORMAT, LEVELS, backend_version(patch.backend), options)).encode()
    source = b"" if resolve_backend(patch.backend) == "native" else _adapter_source()
    return hashlib.blake2b(text + source, digest_size=16).digest()


@cache
def _adapter_source() -> bytes:
    """How the published packages are asked: their own version does not tell."""
    return Path(reference.__file__).read_bytes()


def _read_entry(path: Path) -> Entry | None:
    """The entry of a file that is whole; None where there is none or it is damaged (it is then computed again)."""
    try:
        for level in range(LEVELS):
            npz_shape(path, f"level{level}")
        shares, asked, actual = (array.tolist() for array in read_npz(path, _ABOUT).values())
        if not len(shares) == len(asked) == len(actual) == LEVELS:
            raise ValueError(f"not of {LEVELS} levels")
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        logger.warning("%s: damaged (%s), computed again", path, error)
        return None
    return Entry(path, tuple(shares), tuple(asked), tuple(actual), computed=False)


def _summarise(entries: Entries, seconds: float) -> CacheSummary:
    asked, actual = entries.segments()
    columns = actual.T if len(actual) else np.zeros((LEVELS, 1), int)
    return CacheSummary(
        computed=entries.computed,
        reused=len(actual) - entries.computed,
        asked=tuple(asked.mean(0).tolist()) if len(asked) else (0.0,) * LEVELS,
        actual=tuple(actual.mean(0).tolist()) if len(actual) else (0.0,) * LEVELS,
        actual_range=tuple((int(column.min()), int(column.max())) for column in columns),
        seconds=seconds,
    )
