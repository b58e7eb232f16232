"""What annotation tools draw, as pixels: outlines in pixels or shares of the image, run lengths of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.sources.coco_shapes import covered_pixels


class Region(Protocol):
    """A part of an image."""

    @property
    def exact(self) -> bool:
        """Whether its pixels are the object's; False for a box around it."""

    def pixels(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width]. Raises ValueError, saying what was found, where it cannot be drawn."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One annotation.

    Attributes:
        name: the class, as written.
        region: where it is; None = somewhere in the image.
        where: its place in the file, for messages.
        order: those of a higher one lie on top.
    """

    name: str
    region: Region | None
    where: str
    order: int = 0


def _pixels_per_unit(unit: int, height: int, width: int) -> tuple[float, float]:
    """Of x and of y, where 1 stands for the image's width and height divided by `unit`; 0 = a pixel."""
    return (width / unit, height / unit) if unit else (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Polygons:
    """Outlines.

    Attributes:
        parts: of each outline [x, y, x, y, ...].
        unit: what 1 stands for: of x and of y the image's width and height divided by this; 0 = a pixel.
    """

    parts: tuple[tuple[float, ...], ...]
    unit: int = 0

    @property
    def exact(self) -> bool:
        """True."""
        return True

    def pixels(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width], those within an outline."""
        scale = _pixels_per_unit(self.unit, height, width)
        scaled = [[value * scale[index % 2] for index, value in enumerate(part)] for part in self.parts]
        return covered_pixels(scaled, height, width)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle around an object, which says no pixel's class for certain."""

    left: float
    top: float
    right: float
    bottom: float
    unit: int = 0

    @property
    def exact(self) -> bool:
        """False."""
        return False

    def pixels(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width], those that the rectangle touches."""
        scale = _pixels_per_unit(self.unit, height, width)
        left, right = (int(np.clip(value * scale[0], 0, width)) for value in (self.left, np.nextafter(self.right, 0)))
        top, bottom = (int(np.clip(value * scale[1], 0, height)) for value in (self.top, np.nextafter(self.bottom, 0)))
        inside = np.zeros((height, width), dtype=bool)
        inside[top : bottom + 1, left : right + 1] = True
        return inside


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse by its centre and radii, turned clockwise by an angle in degrees."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    angle: float = 0.0
    unit: int = 0

    @property
    def exact(self) -> bool:
        """True."""
        return True

    def pixels(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width], those whose centre is within."""
        scale = _pixels_per_unit(self.unit, height, width)
        radius_x, radius_y = self.radius_x * scale[0], self.radius_y * scale[1]
        if not (radius_x > 0 and radius_y > 0):
            raise ValueError(f"its radii are {radius_x:.4g} and {radius_y:.4g}")
        x = np.arange(width)[None, :] + 0.5 - self.x * scale[0]
        y = np.arange(height)[:, None] + 0.5 - self.y * scale[1]
        cosine, sine = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        return ((x * cosine + y * sine) / radius_x) ** 2 + ((y * cosine - x * sine) / radius_y) ** 2 <= 1


@dataclass(frozen=True, slots=True)
class CocoCode:
    """COCO's polygons or run lengths.

    Attributes:
        code: `[[x, y, ...], ...]` or `{"size": [height, width], "counts": ...}`.
        exact: False for a crowd.
    """

    code: Any
    exact: bool = True

    def pixels(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width]."""
        return covered_pixels(self.code, height, width)


@dataclass(frozen=True, slots=True)
class RowRuns:
    """CVAT's run lengths: row by row within a rectangle, in turn outside and inside."""

    counts: tuple[int, ...]
    left: int
    top: int
    width: int
    height: int

    @property
    def exact(self) -> bool:
        """True."""
        return True

    def pixels(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width]."""
        if not (self.left >= 0 and self.top >= 0 and 0 < self.width <= width - self.left) or not (
            0 < self.height <= height - self.top
        ):
            raise ValueError(
                f"its rectangle is {self.width} x {self.height} at ({self.left}, {self.top}), outside of the image"
            )
        counts = np.array(self.counts, dtype=np.int64)
        if (counts < 0).any() or counts.sum() != self.width * self.height:
            raise ValueError(f"its runs add up to {counts.sum()} pixels, expected {self.width * self.height}")
        inside = np.zeros((height, width), dtype=bool)
        part = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(self.height, self.width)
        inside[self.top : self.top + self.height, self.left : self.left + self.width] = part
        return inside


@dataclass(frozen=True, slots=True)
class Brush:
    """Label Studio's brush: the run lengths of RGBA pixels, of which alpha says what is painted.

    Attributes:
        code: bytes 0..255.
        width: of the image that was painted on, in pixels.
        height: likewise.
    """

    code: bytes
    width: int
    height: int

    @property
    def exact(self) -> bool:
        """True."""
        return True

    def pixels(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width]."""
        if (self.height, self.width) != (height, width):
            raise ValueError(f"it was painted on {self.width} x {self.height} pixels")
        return brush_values(self.code, height * width * 4).reshape(height, width, 4)[..., 3] > 0


def brush_values(code: bytes, expected: int) -> NDArray[Any]:
    """Unpack the run lengths of `@thi.ng/rle-pack`, which Label Studio writes.

    Bits, the highest first: 32 for the number of values, 5 for the width of a value less 1, four times 4 for the widths
    of a length less 1; then runs: 1 bit (1: one value repeated, 0: as many values), 2 for which width the length has,
    the length less 1, the values.

    Args:
        code: the bytes.
        expected: how many values there must be.

    Returns:
        uint8 [expected], int64 where values have more than 8 bits.

    Raises:
        ValueError: for anything else.
    """
    bits = np.unpackbits(np.frombuffer(code, dtype=np.uint8))
    if len(bits) < 53:
        raise ValueError("its run lengths are too short")
    if (count := _number(bits[:32])) != expected:
        raise ValueError(f"its run lengths are of {count} values, expected {expected}")
    word = _number(bits[32:37]) + 1
    widths = [_number(bits[37 + 4 * index : 41 + 4 * index]) + 1 for index in range(4)]
    values: NDArray[Any] = np.zeros(expected, dtype=np.uint8 if word <= 8 else np.int64)  # four of a pixel
    weights = np.int64(1) << np.arange(word - 1, -1, -1, dtype=np.int64)
    place, filled = 53, 0
    while filled < expected:
        width = widths[_number(bits[place + 1 : place + 3])]
        start = place + 3 + width
        if start + word > len(bits):
            raise ValueError(f"its run lengths end after {filled} of {expected} values")
        length = _number(bits[place + 3 : start]) + 1
        repeated = bool(bits[place])
        place = start + word * (1 if repeated else length)
        if place > len(bits) or filled + length > expected:
            raise ValueError(f"its run lengths do not fit {expected} values")
        values[filled : filled + length] = bits[start:place].reshape(-1, word).astype(np.int64) @ weights
        filled += length
    return values


def _number(bits: NDArray[np.uint8]) -> int:
    return int("".join(map(str, bits.tolist())) or "0", 2)


def numbers(values: Any) -> tuple[float, ...] | None:
    """Plain finite numbers of a sequence, None where one is something else."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return None
    good = all(isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 for value in values)
    return tuple(float(value) for value in values) if good else None
