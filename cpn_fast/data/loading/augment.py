"""Augmentation of training crops: resize, flip, colour jitter, crop; the geometry applies to patch maps as well."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cpn_fast.config.training import AugmentOptions
from cpn_fast.data.loading.jitter import jittered_crop
from cpn_kernels.ops.jittered_crop import Kind, Place, Step

# Loader processes are forked, and OpenCV's own thread pool would not survive that.
cv2.setNumThreads(1)

_KINDS: tuple[Kind, ...] = ("brightness", "contrast", "saturation", "hue")

IMAGENET_MEAN_PIXEL = (124, 116, 104)
"""ImageNet's mean colour as uint8 RGB: what the padding of a crop shows."""


@dataclass(frozen=True)
class Geometry:
    """Where every pixel of a crop comes from: the image is resized, flipped, then cut or padded to the crop.

    Attributes:
        scaled: height, width in pixels after the resize.
        flip: mirrored horizontally after the resize.
        crop: side of the square crop in pixels.
        source: top, left of the cut in the resized, flipped image.
        target: top, left of the cut in the crop.
        extent: rows, columns of the cut.
    """

    scaled: tuple[int, int]
    flip: bool
    crop: int
    source: tuple[int, int]
    target: tuple[int, int]
    extent: tuple[int, int]

    @property
    def share_seen(self) -> float:
        """Share of the image's area that the crop shows, in (0, 1]."""
        return self.extent[0] * self.extent[1] / (self.scaled[0] * self.scaled[1])

    @property
    def place(self) -> Place:
        """The same for the operator that makes the crop."""
        size = (self.crop, self.crop)
        return Place(self.scaled, self.flip, size, self.source, self.target, self.extent)

    def apply_map(self, labels: np.ndarray, fill: int = -1) -> np.ndarray:
        """Transform a map of integers as the image was, by nearest neighbour.

        Args:
            labels: integers [H, W] over the whole image, at any resolution.
            fill: value where the crop shows no image.

        Returns:
            int32 [crop, crop].
        """
        (top, left), (row, column), (rows, columns) = self.source, self.target, self.extent
        out = np.full((self.crop, self.crop), fill, np.int32)
        if labels.shape == (1, 1):  # as a grid asks where the image stands
            out[row : row + rows, column : column + columns] = labels
            return out
        down = _nearest(np.arange(top, top + rows), self.scaled[0], labels.shape[0])
        across = np.arange(left, left + columns)
        across = _nearest(self.scaled[1] - 1 - across if self.flip else across, self.scaled[1], labels.shape[1])
        # Rows, then columns: many times faster than both at once.
        out[row : row + rows, column : column + columns] = labels[down].take(across, axis=1)
        return out


def _nearest(index: np.ndarray, scaled: int, size: int) -> np.ndarray:
    """Source index whose pixel holds the centre of each resized pixel, in exact integers."""
    return (2 * index + 1) * size // (2 * scaled)


def scaled_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Height and width after a resize that brings the longer side to `long_side`; at least one pixel each."""
    longest = max(height, width)
    return max(1, round(height * long_side / longest)), max(1, round(width * long_side / longest))


def draw_geometry(height: int, width: int, options: AugmentOptions, rng: np.random.Generator) -> Geometry:
    """Draw resize, flip and crop of one image.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        options: crop side, range of the long side (both ends included), whether to flip.
        rng: where the numbers come from; the same count of numbers is drawn whatever the options.

    Returns:
        The geometry. Where the resized image is smaller than the crop it lies at a random place within it.
    """
    low, high = options.resize_range()
    scaled = scaled_size(height, width, int(rng.integers(low, high + 1)))
    flip = bool(rng.random() < 0.5) and options.flip
    source, target, extent = [], [], []
    for side in scaled:
        slack = side - options.crop
        offset = int(rng.integers(abs(slack) + 1))
        source.append(offset if slack > 0 else 0)
        target.append(0 if slack > 0 else offset)
        extent.append(min(side, options.crop))
    return Geometry(
        scaled=scaled,
        flip=flip,
        crop=options.crop,
        source=(source[0], source[1]),
        target=(target[0], target[1]),
        extent=(extent[0], extent[1]),
    )


def draw_jitter(ranges: tuple[float, float, float, float], rng: np.random.Generator) -> list[Step]:
    """Draw changes of brightness, contrast, saturation and hue, in random order.

    Args:
        ranges: brightness, contrast, saturation: factors are drawn from [1 - r, 1 + r] (not below 0); hue: shift in
            turns of the colour circle from [-r, r]. 0 leaves that property as it is.
        rng: where the numbers come from; the same count of numbers is drawn whatever the ranges.

    Returns:
        The steps in their order.
    """
    order = rng.permutation(4)
    draws = rng.uniform(-1.0, 1.0, 4)
    steps = []
    for number in order:
        amount = float(draws[number]) * ranges[number]
        if ranges[number] == 0:
            continue
        kind = _KINDS[number]
        steps.append(Step(kind, amount if kind == "hue" else max(0.0, 1.0 + amount)))
    return steps


def augment(
    image: np.ndarray,
    options: AugmentOptions,
    rng: np.random.Generator,
    fill: tuple[int, int, int] = IMAGENET_MEAN_PIXEL,
) -> tuple[np.ndarray, Geometry]:
    """Augment one image: long side resized (cubic), horizontal flip, colour jitter, random crop with mean fill.

    The crop is what it would be if the whole resized image were jittered; only what it shows is.

    Args:
        image: uint8 [H, W, 3] RGB.
        options: see `AugmentOptions`.
        rng: generator of (seed, epoch, sample id).
        fill: colour of the padding, uint8 RGB.

    Returns:
        The crop, uint8 [crop, crop, 3], and the geometry to transform maps with.
    """
    geometry = draw_geometry(image.shape[0], image.shape[1], options, rng)
    return jittered_crop(image, geometry.place, draw_jitter(options.jitter, rng), fill), geometry


def grid_patches(geometry: Geometry, sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Grid patches of a crop (paper section 3.1): squares of one side, drawn evenly from `sides`.

    Args:
        geometry: the crop's geometry; its padding belongs to no patch.
        sides: K_S, in pixels of a 448 crop; scaled with the crop's side.
        rng: where the draw comes from.

    Returns:
        int32 [crop, crop], patch numbers row by row from 0, -1 = padding.
    """
    side = max(1, round(int(rng.choice(sides)) * geometry.crop / 448))
    cell = np.arange(geometry.crop, dtype=np.int32) // side
    grid = cell[:, None] * (int(cell[-1]) + 1) + cell
    return np.where(geometry.apply_map(np.zeros((1, 1), np.int32)) < 0, np.int32(-1), grid)
