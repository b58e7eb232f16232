"""What the file-based sources share: problems with their place, and reading one record."""

from __future__ import annotations

import logging
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from cpn_fast.data.types import Record, Sample, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, read_image
from cpn_fast.files.masks import read_mask
from cpn_fast.files.other_masks import other_masks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """Something wrong with the data.

    Attributes:
        path: the file it is in, or its address.
        message: what was found, what was expected and what to do.
        line: line number from 1, None where the file has no lines.
    """

    path: Path | str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}{f', line {self.line}' if self.line else ''}: {self.message}"


@dataclass(frozen=True)
class Scan:
    """A split as it stands on disk.

    Attributes:
        records: the images that can be used; of shards a sequence that makes them as they are asked for.
        problems: what is wrong with the rest.
        notes: what is no fault but may not be meant.
        warnings: what is passed over although it was meant; also said where the records are used.
    """

    records: Sequence[Record]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class FileSource(ABC):
    """A source whose images are files. Subclasses say what a split holds (`scan`); see `data.types.Source`.

    Args:
        spec: what `open_source` was given.
        root: the folder of the data set.
        max_pixels: largest image that is read.
    """

    def __init__(self, spec: str, root: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.root = root
        self.max_pixels = max_pixels
        self._spec = spec
        self._scans: dict[str, Scan] = {}
        self._said: set[str] = set()

    @property
    def spec(self) -> str:
        """What `open_source` was given."""
        return self._spec

    @property
    def description(self) -> str:
        """What kind of data it is, for `cpn check-data`."""
        return ""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The K foreground class names, background excluded."""

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The split names that `records` knows."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of which everything is data, or single files; nothing may be written there."""
        return (self.root,)

    @abstractmethod
    def _scan(self, split: str) -> Scan:
        """Look through one known split without opening an image."""

    def scan(self, split: str) -> Scan:
        """The split's records and every problem that shows without opening an image (done once per split).

        Raises:
            DataError: for an unknown split, or if a file that describes the split cannot be read at all.
        """
        if split not in self._scans:
            if split not in self.splits():
                raise DataError(f"{self.spec}: no split {split!r}; it has {', '.join(self.splits()) or 'none'}")
            self._scans[split] = self._scan(split)
        return self._scans[split]

    def first(self, count: int, splits: Mapping[str, Sequence[Record]]) -> list[tuple[str, Record]]:
        """The first entries, with what they were read from, for `cpn check-data`.

        Args:
            count: how many.
            splits: the records of every split that was scanned.
        """
        records = splits["train"] if "train" in splits else next(iter(splits.values()), ())
        return [("-", record) for record in records[:count]]

    def records(self, split: str) -> Sequence[Record]:
        """The split's records in a stable order.

        Raises:
            DataError: for an unknown split, an empty one, or one with a problem (`scan` gives them all).
        """
        scan = self.scan(split)
        if scan.problems:
            more = len(scan.problems) - 1
            rest = f" ({more} more problem{'s' if more > 1 else ''}: cpn check-data {self.spec})" if more else ""
            raise DataError(f"{scan.problems[0]}{rest}")
        if not scan.records:
            raise DataError(f"{self.spec}: split {split!r} has no images")
        for warning in scan.warnings:
            if warning not in self._said:
                self._said.add(warning)
                log.warning("%s", warning)
        return scan.records

    def read(self, record: Record, with_mask: bool = False) -> Sample:
        """Read the image, and with `with_mask` its ground truth where it has one.

        Raises:
            DataError: if image or mask cannot be read, or their sizes differ.
        """
        image = read_image(record.image_path, self.max_pixels)
        mask = self.read_mask(record) if with_mask else None
        if mask is not None:
            check_same_size(record, image, mask)
        return Sample(record, image, label_vector(record.labels, len(self.classes)), mask)

    def read_mask(self, record: Record) -> np.ndarray | None:
        """The ground truth, uint8 [H, W], or None where there is none. Raises DataError if it cannot be read."""
        if record.mask_path is None:
            return None
        return read_mask(record.mask_path, len(self.classes), self.max_pixels)


def folders_of(source: Source) -> tuple[Path, ...]:
    """The folders of a source of files, see `FileSource.folders`; none of another source."""
    return source.folders if isinstance(source, FileSource) else ()


def check_same_size(record: Record, image: np.ndarray, mask: np.ndarray) -> None:
    """Raise DataError unless mask [H, W] and image [H, W, 3] have the same size."""
    if mask.shape != image.shape[:2]:
        raise DataError(
            f"{record.mask_path or record.image_path}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its "
            f"image {record.image_path} {image.shape[1]} x {image.shape[0]} (after EXIF rotation); make them equal"
        )


class LazyRecords(Sequence[Record]):
    """Records that are made as they are asked for, so that millions of them are never all in memory."""

    @abstractmethod
    def any_mask(self) -> bool:
        """Whether any image of all splits has a mask."""

    @abstractmethod
    def find(self, image_id: str) -> Record | None:
        """The record of an id, of whatever split; None where there is none."""


class _WithoutMask(Container[str]):
    """The ids of those images that have no mask."""

    def __init__(self, records: LazyRecords) -> None:
        self._records = records

    def __contains__(self, image_id: object) -> bool:
        record = self._records.find(str(image_id))
        return record is not None and record.mask_path is None


def unread_masks(folder: Path, records: Iterable[Record]) -> tuple[str, ...]:
    """A warning where images without a mask have one in `folder` that is no PNG."""
    if not folder.is_dir():
        return ()
    if isinstance(records, LazyRecords):
        text = other_masks(folder, _WithoutMask(records))
    else:
        text = other_masks(folder, {record.id for record in records if record.mask_path is None})
    return (text,) if text else ()


def label_vector(labels: tuple[int, ...] | None, num_classes: int) -> np.ndarray | None:
    """float32 [K], 1 for each class index in `labels`; None stays None."""
    if labels is None:
        return None
    vector = np.zeros(num_classes, dtype=np.float32)
    vector[list(labels)] = 1.0
    return vector


def canonical(name: str) -> str:
    """A name for comparison: NFC, since macOS stores file names decomposed while lists hold them composed."""
    return unicodedata.normalize("NFC", name)


def unknown_class(name: str, classes: Sequence[str]) -> str:
    """The message for a class name that is not in `classes`, with the nearest one that is."""
    near = get_close_matches(name, classes, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "correct the name, or list it in classes.txt"
    shown = ", ".join(classes[:20]) + (f", ... ({len(classes)} in all)" if len(classes) > 20 else "")
    return f"unknown class {name!r}; known are {shown}; {hint}"
