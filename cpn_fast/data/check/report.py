"""The outcome of a check."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpn_fast.data.check.estimates import Rates


@dataclass(frozen=True)
class SplitCounts:
    """One split in numbers.

    Attributes:
        images: images listed and found.
        labelled: images with image labels.
        with_mask: images with a readable mask.
        per_class: images per class, in the order of the source's classes.
        sizes: (width, height) of every readable image.
    """

    images: int
    labelled: int
    with_mask: int
    per_class: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CheckReport:
    """The outcome of `check_source`.

    Attributes:
        spec: the source.
        classes: its foreground classes.
        splits: split -> its numbers.
        problems: everything that must be mended, each with file and, where there is one, line.
        notes: what is no fault but may not be meant.
        warnings: labels and masks from which nothing, or something else than was meant, is learned.
        rates: measured costs per pixel; None where nothing was read.
        description: what kind of data it is.
        preview: of the first entries: place, image, labels, split, mask.
        pairs: (class, class, images with both, their share of the rarer one's).
    """

    spec: str
    classes: tuple[str, ...]
    splits: dict[str, SplitCounts]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    rates: Rates | None = field(default=None, compare=False)
    description: str = ""
    preview: tuple[tuple[str, str, str, str, str], ...] = ()
    pairs: tuple[tuple[str, str, int, float], ...] = ()
