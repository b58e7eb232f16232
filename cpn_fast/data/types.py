"""The types that every source and every stage share: Record, Sample, Batch, Source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cpn_fast.files.member import ImageFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VOID = 255


@dataclass(frozen=True)
class Record:
    """One image of a split, before anything is read.

    Attributes:
        id: unique within the source; relative path without suffix for folders.
        image_path: the image file, or the member of a shard.
        labels: sorted foreground class indices 0..K-1 (background not counted); None where the image has no label.
        mask_path: the ground-truth mask file, None where there is none (or where the source makes masks itself).
    """

    id: str
    image_path: ImageFile
    labels: tuple[int, ...] | None
    mask_path: ImageFile | None = None


@dataclass(frozen=True)
class Sample:
    """One image that has been read.

    Attributes:
        record: where it came from.
        image: uint8 [H, W, 3] RGB.
        labels: float32 [K], 1 where the class is in the image; None without labels.
        mask: uint8 [H, W], 0 background, 1..K classes, 255 void; None without ground truth.
    """

    record: Record
    image: np.ndarray
    labels: np.ndarray | None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """One training step's input.

    Attributes:
        ids: the B sample ids.
        images: uint8 [B, H, W, 3] RGB, augmented crops.
        patches: int32 [B, H, W] patch of every pixel, -1 = crop padding; zeros [B, 1, 1] of methods that hide none.
        keys: int64 [B], the random key of (seed, epoch, sample id) from which hidden patches are drawn.
        labels: float32 [B, K].
        targets: uint8 [B, H, W] pixel labels, 0 background, 1..K classes, 255 void; None without.
    """

    ids: tuple[str, ...]
    images: Tensor
    patches: Tensor
    keys: Tensor
    labels: Tensor
    targets: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor to `device` without waiting for it."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)[1:]
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)


class Source(Protocol):
    """A data set: classes, splits, and how to read one record."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The K foreground class names, background excluded."""

    @property
    def spec(self) -> str:
        """What `open_source` was given, e.g. `voc:data/VOC2012`."""

    def splits(self) -> tuple[str, ...]:
        """The split names that `records` knows."""

    def records(self, split: str) -> Sequence[Record]:
        """The split's records in a stable order. Raises DataError for an unknown split, naming those that exist."""

    def read(self, record: Record, with_mask: bool = False) -> Sample:
        """Read image (and mask). Raises DataError naming the file."""
