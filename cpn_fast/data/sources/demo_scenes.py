"""Painter of the demo's scenes: objects with a small class-typical part and a larger, weakly typical body.

The recipe is fixed and was fixed before any method ran on it:

- A *part* is a two-coloured badge with the class's own symbol. It covers 10% to 20% of its object (never above 25%)
  and says the class for certain.
- A *body* is a blob whose hue is drawn around the class's hue with a spread that overlaps the neighbouring classes, and
  whose texture is the class's one in 70% of the objects only (four textures, so two classes share each).
- *Clutter* is made of blobs with the same outlines and textures but mostly greyer colours and no badge, or a grey one.
  Now and then a piece of clutter is as colourful as a body. Classes, positions, sizes and backgrounds are independent.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLASSES = ("ring", "plus", "bars", "checker", "half", "cross", "dot", "wedge")
SIDES = (128, 144)
OBJECT_RADIUS = (18.0, 32.0)
PART_SHARE = (0.10, 0.20)
MAX_PART_SHARE = 0.25
HUE_SPREAD = 20.0 / 360.0
TYPICAL_TEXTURE = 0.7
TEXTURES = 4

_PART_COLOURS = np.array(
    [
        [[250, 250, 250], [205, 30, 35]],
        [[250, 220, 50], [30, 50, 190]],
        [[20, 20, 20], [245, 205, 30]],
        [[245, 245, 245], [20, 130, 60]],
        [[225, 50, 180], [70, 225, 225]],
        [[250, 250, 250], [15, 15, 15]],
        [[90, 235, 250], [95, 25, 140]],
        [[255, 140, 20], [15, 65, 60]],
    ],
    dtype=np.float32,
)
"""uint8 range [8, 2, 3]: symbol and ground colour of every class's badge."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene, as it is visible.

    Attributes:
        label: class 0..7.
        box: x0, y0, x1, y1 in pixels, inclusive, counted from 0.
        part_box: the same of its badge.
        area: visible pixels.
        part_area: visible pixels of its badge.
    """

    label: int
    box: tuple[int, int, int, int]
    part_box: tuple[int, int, int, int]
    area: int
    part_area: int


@dataclass(frozen=True)
class Scene:
    """A painted image.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        mask: uint8 [H, W], 0 background, 1..8 classes.
        objects: what is in it, in painting order.
    """

    image: np.ndarray
    mask: np.ndarray
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class _Blob:
    """Outline of a blob on its own square window.

    Attributes:
        corner: top and left of the window in the image (may lie outside of it).
        inside: bool [n, n].
        u, v: float32 [n, n] pixel coordinates along the blob's own axes.
        centre: row and column of the middle, window coordinates.
    """

    corner: tuple[int, int]
    inside: np.ndarray
    u: np.ndarray
    v: np.ndarray


def paint_scene(rng: np.random.Generator) -> Scene:
    """Paint one scene: background, clutter, then one to four objects that hide no badge and little of one another.

    Args:
        rng: source of every decision.

    Returns:
        The scene; its sides are 128 or 144 pixels.
    """
    height, width = (int(side) for side in rng.choice(SIDES, 2))
    image = _background(rng, height, width)
    for _ in range(int(rng.integers(5, 10))):
        _paint_clutter(rng, image)
    owner = np.full((height, width), -1, np.int16)
    badge = np.zeros((height, width), bool)
    labels: list[int] = []
    for _ in range(int(rng.choice((1, 2, 3, 4), p=(0.15, 0.35, 0.35, 0.15)))):
        label = int(rng.integers(len(CLASSES)))
        if _paint_object(rng, image, owner, badge, label, len(labels)):
            labels.append(label)
    image += 4.0 * rng.standard_normal(image.shape, np.float32)
    mask = np.zeros((height, width), np.uint8)
    seen = owner >= 0
    mask[seen] = (np.asarray(labels, np.uint8) + 1)[owner[seen]]
    objects = tuple(_describe(owner, badge, index, label) for index, label in enumerate(labels))
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), mask, objects)


def _describe(owner: np.ndarray, badge: np.ndarray, index: int, label: int) -> SceneObject:
    body = owner == index
    part = body & badge
    return SceneObject(label, _box(body), _box(part), int(body.sum()), int(part.sum()))


def _box(region: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.asarray(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32) * 255.0


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Noise in about [-1, 1] that varies over `cell` pixels: float32 [H, W], bilinear between random knots."""
    rows, columns = height // cell + 2, width // cell + 2
    knots = rng.uniform(-1.0, 1.0, (rows, columns)).astype(np.float32)
    y, x = np.arange(height, dtype=np.float32) / cell, np.arange(width, dtype=np.float32) / cell
    top, left = y.astype(np.intp), x.astype(np.intp)
    fy, fx = (y - top)[:, None], x - left
    lines = knots[top] * (1 - fy) + knots[top + 1] * fy
    return lines[:, left] * (1 - fx) + lines[:, left + 1] * fx


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float32 [H, W, 3]: two dull colours blended by coarse noise, with medium and fine brightness noise."""
    near = _rgb(rng.uniform(), rng.uniform(0.05, 0.30), rng.uniform(0.35, 0.85))
    far = _rgb(rng.uniform(), rng.uniform(0.05, 0.30), rng.uniform(0.35, 0.85))
    blend = (0.5 + 0.5 * _smooth_noise(rng, height, width, 48))[..., None]
    light = 1.0 + 0.14 * _smooth_noise(rng, height, width, 12) + 0.10 * _smooth_noise(rng, height, width, 4)
    return (near * blend + far * (1.0 - blend)) * light[..., None]


def _blob(rng: np.random.Generator, radius: float, centre: tuple[float, float]) -> _Blob:
    """A star-shaped blob: a rotated ellipse whose radius wobbles with three harmonics."""
    # The wobbles add up to at most 1.26 radii.
    reach = math.ceil(radius * 1.27)
    top, left = int(centre[0]) - reach, int(centre[1]) - reach
    y, x = np.mgrid[0 : 2 * reach + 1, 0 : 2 * reach + 1].astype(np.float32)
    y, x = y + (top - centre[0]), x + (left - centre[1])
    turn, aspect = rng.uniform(0.0, math.pi), rng.uniform(0.72, 1.0)
    u = x * math.cos(turn) + y * math.sin(turn)
    v = y * math.cos(turn) - x * math.sin(turn)
    angle = np.arctan2(v / aspect, u)
    edge = np.ones_like(angle)
    for order, strength in ((2, 0.10), (3, 0.10), (5, 0.06)):
        edge += rng.uniform(0.0, strength) * np.cos(order * angle + rng.uniform(0.0, 2.0 * math.pi))
    inside = u * u + (v / aspect) ** 2 < (radius * edge) ** 2
    return _Blob((top, left), inside, u, v)


def _texture(rng: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness pattern -1 or 1, float32 like `u`: stripes, dots, checks or grain, along the blob's axes."""
    period = rng.uniform(6.0, 9.0)
    turns = 2.0 * math.pi / period
    if kind == 0:
        pattern = np.sin(turns * v) > 0
    elif kind == 1:
        pattern = np.sin(turns * u) * np.sin(turns * v) > 0.35
    elif kind == 2:
        pattern = (np.floor(u / period) + np.floor(v / period)) % 2 > 0
    else:
        pattern = np.repeat(np.repeat(rng.random((u.shape[0] // 2 + 1, u.shape[1] // 2 + 1)) > 0.5, 2, 0), 2, 1)
        pattern = pattern[: u.shape[0], : u.shape[1]]
    return np.where(pattern, np.float32(1), np.float32(-1))


def _skin(rng: np.random.Generator, blob: _Blob, colour: np.ndarray, texture: int) -> np.ndarray:
    """Colour of a blob, float32 [n, n, 3]: texture, light from one side, a darker rim."""
    light = 1.0 + rng.uniform(0.08, 0.16) * _texture(rng, texture, blob.u, blob.v)
    light += rng.uniform(-0.15, 0.15) * blob.u / max(float(np.abs(blob.u).max()), 1.0)
    core = blob.inside.copy()
    core[1:-1, 1:-1] &= blob.inside[:-2, 1:-1] & blob.inside[2:, 1:-1] & blob.inside[1:-1, :-2] & blob.inside[1:-1, 2:]
    light = np.where(core, light, 0.55 * light)
    return colour * light[..., None]


_SYMBOLS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda x, y: (x * x + y * y > 0.38**2) & (x * x + y * y < 0.72**2),
    lambda x, y: (np.abs(x) < 0.26) | (np.abs(y) < 0.26),
    lambda x, y: np.cos(3.5 * math.pi * x) > 0,
    lambda x, y: x * y > 0,
    lambda x, y: y > 0,
    lambda x, y: (np.abs(x - y) < 0.38) | (np.abs(x + y) < 0.38),
    lambda x, y: x * x + y * y < 0.25,
    lambda x, y: (y > -0.6) & (y < 0.75) & (np.abs(x) < 0.30 + 0.45 * y),
)
"""Where each class's symbol is drawn, by badge coordinates; the badge is the unit disc."""


def _place_badge(rng: np.random.Generator, blob: _Blob) -> np.ndarray:
    """A badge on the blob, bool [n, n]: a disc somewhere between its middle and its edge."""
    area = int(blob.inside.sum())
    radius = math.sqrt(rng.uniform(*PART_SHARE) * area / math.pi)
    angle, offset = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.25, 0.55) * math.sqrt(area / math.pi)
    distance = (blob.u - offset * math.cos(angle)) ** 2 + (blob.v - offset * math.sin(angle)) ** 2
    return (distance < radius * radius) & blob.inside


def _upright(badge: np.ndarray, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Badge coordinates along the image's axes, tilted by `tilt` radians, so that symbols stand upright on any body."""
    rows, columns = np.nonzero(badge)
    radius = max(math.sqrt(len(rows) / math.pi), 1.0)
    y = ((np.arange(badge.shape[0], dtype=np.float32) - float(rows.mean())) / radius)[:, None]
    x = (np.arange(badge.shape[1], dtype=np.float32) - float(columns.mean())) / radius
    return x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)


def _window(blob: _Blob, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the image under the blob's window, and the part of the window over the image."""
    spans = []
    for start, size, limit in zip(blob.corner, blob.inside.shape, shape, strict=True):
        low, high = max(start, 0), min(start + size, limit)
        spans.append((slice(low, high), slice(low - start, high - start)))
    return (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1])


def _paint_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    blob = _blob(rng, rng.uniform(7.0, 26.0), (rng.uniform(0, height), rng.uniform(0, width)))
    saturation = rng.uniform(0.35, 0.65) if rng.random() < 0.12 else rng.uniform(0.05, 0.35)
    skin = _skin(rng, blob, _rgb(rng.uniform(), saturation, rng.uniform(0.3, 0.9)), int(rng.integers(TEXTURES)))
    if rng.random() < 0.3:
        badge = _place_badge(rng, blob)
        x, y = _upright(badge, rng.uniform(-0.3, 0.3))
        light, dark = rng.uniform(150, 230), rng.uniform(60, 130)
        grey = np.where(_SYMBOLS[int(rng.integers(len(CLASSES)))](x, y), light, dark).astype(np.float32)
        skin = np.where(badge[..., None], grey[..., None], skin)
    there, here = _window(blob, (height, width))
    image[there] = np.where(blob.inside[here][..., None], skin[here], image[there])


def _find_place(
    rng: np.random.Generator, radius: float, owner: np.ndarray, badge: np.ndarray
) -> tuple[_Blob, tuple[slice, slice], tuple[slice, slice]] | None:
    """A blob inside the image that covers no badge and at most a tenth of its own area of other objects."""
    height, width = owner.shape
    margin = radius * 1.05
    for _ in range(12):
        centre = (rng.uniform(margin, height - margin), rng.uniform(margin, width - margin))
        blob = _blob(rng, radius, centre)
        there, here = _window(blob, owner.shape)
        inside = blob.inside[here]
        hidden = np.unique(owner[there][inside], return_counts=True)
        if not (badge[there] & inside).any() and _leaves_bodies(hidden, owner, badge, 0.1 * inside.sum()):
            return blob, there, here
    return None


def _leaves_bodies(hidden: tuple[np.ndarray, np.ndarray], owner: np.ndarray, badge: np.ndarray, limit: float) -> bool:
    """Whether hiding `hidden` (owners, pixels) stays below `limit` pixels and keeps every badge below its share."""
    touched = [(index, count) for index, count in zip(*hidden, strict=True) if index >= 0]
    if sum(count for _, count in touched) > limit:
        return False
    for index, count in touched:
        body = owner == index
        if (body & badge).sum() > MAX_PART_SHARE * (body.sum() - count):
            return False
    return True


def _paint_object(
    rng: np.random.Generator, image: np.ndarray, owner: np.ndarray, badge: np.ndarray, label: int, index: int
) -> bool:
    """Paint one object over the scene and enter it in `owner` and `badge`; False where no room was found."""
    place = _find_place(rng, rng.uniform(*OBJECT_RADIUS), owner, badge)
    if place is None:
        return False
    blob, there, here = place
    hue = label / len(CLASSES) + rng.normal(0.0, HUE_SPREAD)
    typical = rng.random() < TYPICAL_TEXTURE
    texture = label % TEXTURES if typical else int(rng.integers(TEXTURES))
    skin = _skin(rng, blob, _rgb(hue, rng.uniform(0.40, 0.75), rng.uniform(0.45, 0.90)), texture)
    part = _place_badge(rng, blob)
    x, y = _upright(part, rng.uniform(-0.3, 0.3))
    drawn = _SYMBOLS[label](x, y)[..., None]
    tint = _PART_COLOURS[label] * rng.uniform(0.85, 1.0) + 8.0 * rng.standard_normal((2, 3), np.float32)
    skin = np.where(part[..., None], np.where(drawn, tint[0], tint[1]), skin)
    inside = blob.inside[here]
    image[there] = np.where(inside[..., None], skin[here], image[there])
    owner[there][inside] = index
    badge[there] |= part[here]
    return True
