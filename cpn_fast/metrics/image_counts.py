"""What was counted of every single image, exact and compact, so that scores can be resampled over images."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.errors import DataError
from cpn_fast.metrics.beta_sweep import BETAS, Bins

COUNTS_NAME = "counts.npz"
FORMAT = 1
PARTS = ("offsets", "truths", "winners", "bins", "counts")


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of each of n images by true class, best foreground class and score bin; only those that occur.

    A pixel of bin b is background at every beta of the grid from BETAS[b] on, and of its best class below that. Masks
    that were read have no score: bin 0 for background, the last bin for a class, and class -1 for void.

    Attributes:
        offsets: int64 [n + 1], where each image's entries begin.
        truths: int16 [E], the true class, 0 background.
        winners: int16 [E], the best foreground class 0..K-1; -1 where a mask is void.
        bins: uint8 [E], 0..101.
        counts: int32 [E], pixels.
    """

    offsets: NDArray[np.int64]
    truths: NDArray[np.int16]
    winners: NDArray[np.int16]
    bins: NDArray[np.uint8]
    counts: NDArray[np.int32]

    @classmethod
    def of(cls, images: Sequence[Bins], num_classes: int) -> ImageCounts:
        """From the flat bins and their counts of each image, as `BetaSweep` keeps them."""
        keys = np.concatenate([keys for keys, _ in images]) if images else np.zeros(0, np.int64)
        pairs, bins = np.divmod(keys, len(BETAS) + 1)
        truths, winners = np.divmod(pairs, num_classes)
        return cls(
            np.cumsum([0, *(len(keys) for keys, _ in images)]),
            truths.astype(np.int16),
            winners.astype(np.int16),
            bins.astype(np.uint8),
            np.concatenate([counts for _, counts in images]).astype(np.int32) if images else np.zeros(0, np.int32),
        )

    @classmethod
    def of_confusions(cls, confusions: Iterable[NDArray[np.int64]]) -> ImageCounts:
        """From a confusion matrix [C, C + 1] of each image's mask, the last column void; one is held at a time."""
        lengths, truths, winners, bins, counts = array("q", [0]), array("h"), array("h"), array("B"), array("i")
        for matrix in confusions:
            rows, columns = matrix.nonzero()
            void = columns == matrix.shape[1] - 1
            lengths.append(len(rows))
            truths.frombytes(rows.astype(np.int16).tobytes())
            winners.frombytes(np.where(void, -1, np.maximum(columns - 1, 0)).astype(np.int16).tobytes())
            bins.frombytes(np.where(columns == 0, 0, len(BETAS)).astype(np.uint8).tobytes())
            counts.frombytes(matrix[rows, columns].astype(np.int32).tobytes())
        return cls(
            np.cumsum(lengths),
            np.array(truths, np.int16),
            np.array(winners, np.int16),
            np.array(bins, np.uint8),
            np.array(counts, np.int32),
        )

    def take(self, order: Sequence[int] | NDArray[np.integer]) -> ImageCounts:
        """Those of some images, in this order."""
        chosen = np.asarray(order, np.int64)
        lengths = np.diff(self.offsets)[chosen]
        offsets = np.cumsum([0, *lengths])
        entries = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][chosen] - offsets[:-1], lengths)
        return ImageCounts(offsets, *(getattr(self, part)[entries] for part in PARTS[1:]))

    def at(self, beta: float) -> ImageCounts:
        """Those of the masks at a background score 0, 0.01, ..., 1."""
        above = self.bins > round(100 * beta)
        return dataclasses.replace(self, bins=np.where(above, len(BETAS), 0).astype(np.uint8))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def has_beta(self) -> bool:
        """Whether the prediction depends on the background score: not where masks were read."""
        return bool(((self.bins > 0) & (self.bins < len(BETAS))).any())

    def tallies(self, index: int, num_classes: int) -> NDArray[np.int64]:
        """Pixels of each image that are right, predicted and true, by class, at beta BETAS[index].

        Returns:
            int64 [n, 3, C]: IoU of a class is right / (predicted + true - right), of sums over images.
        """
        channels = num_classes + 1
        image = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        predicted = np.where(self.bins <= index, 0, self.winners.astype(np.int64) + 1)
        claims = (self.winners >= 0) | (self.bins <= index)  # void claims nothing
        truths = self.truths.astype(np.int64)

        def count(classes: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
            flat = np.bincount((image * channels + classes)[chosen], self.counts[chosen], len(self) * channels)
            return flat.reshape(len(self), channels).astype(np.int64)

        right = claims & (predicted == truths)
        return np.stack([count(truths, right), count(predicted, claims), count(truths, np.ones_like(right))], axis=1)


@dataclass(frozen=True)
class ScoredImages:
    """The content of counts.npz.

    Attributes:
        ids: of the n scored images, in the order of the split.
        classes: the K foreground class names.
        maps: "cam" and, with refinement, "rcam"; or "masks".
        path: the file.
    """

    ids: Sequence[str]
    classes: tuple[str, ...]
    maps: Mapping[str, ImageCounts]
    path: Path = Path(COUNTS_NAME)


def write_counts(path: Path, scored: ScoredImages) -> None:
    """Write counts.npz in one step."""
    arrays: dict[str, NDArray[np.generic]] = {
        "format": np.array(FORMAT),
        "ids": _text_array(scored.ids),
        "classes": np.array(scored.classes, dtype=np.str_),
    }
    for name, counts in scored.maps.items():
        arrays |= {f"{name}/{part}": getattr(counts, part) for part in PARTS}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _text_array(texts: Sequence[str]) -> NDArray[np.str_]:
    """As `np.array` makes it, without all of them as Python's strings."""
    found = np.empty(len(texts), f"U{max(map(len, texts), default=1) or 1}")
    for place, text in enumerate(texts):
        found[place] = text
    return found


def read_counts(path: Path) -> ScoredImages:
    """Read counts.npz.

    Raises:
        DataError: where there is none, or it is not what `cpn evaluate` writes.
    """
    advice = "score it (again) with `cpn evaluate`"
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                raise DataError(f"{path}: key format is {int(file['format'])}, expected {FORMAT}; {advice}")
            names = dict.fromkeys(key.partition("/")[0] for key in file.files if "/" in key)
            maps = {name: ImageCounts(*(file[f"{name}/{part}"] for part in PARTS)) for name in names}
            return ScoredImages(tuple(map(str, file["ids"])), tuple(map(str, file["classes"])), maps, path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; {advice}") from None
    except (BadZipFile, OSError, EOFError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}), expected per-image counts; {advice}") from error
