"""How far two models agree about the same images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAP_TOLERANCE = 1e-3
MAPS_BAR, PIXELS_BAR, FOREGROUND_BAR = 0.999, 0.999, 0.995
"""Least share of map elements within the tolerance, of all pixels and of foreground pixels labelled equal."""

IN_FORCE = 0.01
"""A class's map counts where its largest element is above this: those of other classes are 0 on both sides, or next to
it, and would flatter."""


@dataclass(frozen=True)
class Outputs:
    """One side's answer: maps float32 [B, K or K + 1, H, W], scores float32 [B, K], mask uint8 [B, H, W]."""

    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    mask: NDArray[np.uint8]

    def of(self, index: int) -> Outputs:
        """The answer for one image of the batch, as a batch of one."""
        one = slice(index, index + 1)
        return Outputs(self.maps[one], self.scores[one], self.mask[one])


@dataclass
class MaskAgreement:
    """Counts of pixels; shares are 1 where nothing was counted.

    Attributes:
        pixels: all pixels.
        equal: of these, labelled equal.
        foreground: pixels that either side labels foreground.
        foreground_equal: of these, labelled equal.
    """

    pixels: int = 0
    equal: int = 0
    foreground: int = 0
    foreground_equal: int = 0

    @property
    def pixels_equal(self) -> float:
        """Share of pixels labelled equal."""
        return self.equal / self.pixels if self.pixels else 1.0

    @property
    def foreground_pixels_equal(self) -> float:
        """Share of foreground pixels labelled equal."""
        return self.foreground_equal / self.foreground if self.foreground else 1.0

    def add_masks(self, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
        """Count two masks of the same images, uint8 of one shape."""
        same, foreground = one == other, (one > 0) | (other > 0)
        self.pixels += same.size
        self.equal += int(same.sum())
        self.foreground += int(foreground.sum())
        self.foreground_equal += int((same & foreground).sum())


@dataclass
class Agreement(MaskAgreement):
    """The same with maps, over images.

    Attributes:
        images: compared.
        sizes: (height, width) in pixels that occurred.
        batches: batch sizes that occurred.
        elements: map elements of the active classes.
        close: of these, within `MAP_TOLERANCE`.
        largest: largest difference of a map element.
    """

    images: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    batches: set[int] = field(default_factory=set)
    elements: int = 0
    close: int = 0
    largest: float = 0.0

    @property
    def maps_close(self) -> float:
        """Share of map elements within the tolerance."""
        return self.close / self.elements if self.elements else 1.0

    @property
    def met(self) -> bool:
        """Whether all three shares reach their bar."""
        shares = (self.maps_close, self.pixels_equal, self.foreground_pixels_equal)
        return all(share >= bar for share, bar in zip(shares, (MAPS_BAR, PIXELS_BAR, FOREGROUND_BAR), strict=True))

    def add(self, eager: Outputs, exported: Outputs, batch: int) -> None:
        """Count what both sides say of some images, which went through in a batch of `batch`."""
        count, height, width = eager.mask.shape
        self.images += count
        self.sizes.add((height, width))
        self.batches.add(batch)
        in_force = np.maximum(eager.maps, exported.maps).max(axis=(2, 3)) > IN_FORCE
        difference = np.abs(eager.maps[in_force] - exported.maps[in_force])
        self.elements += difference.size
        self.close += int((difference <= MAP_TOLERANCE).sum())
        self.largest = max(self.largest, float(difference.max(initial=0)))
        self.add_masks(eager.mask, exported.mask)
