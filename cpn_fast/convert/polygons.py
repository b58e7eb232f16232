"""Regions of pixels as polygons with holes, along the pixels' edges, and back. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""Points [n, 2] of a closed line, x to the right and y down in pixels; the last point is not the first again."""

_EAST, _SOUTH, _WEST, _NORTH = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_NEIGHBOURS = 32


@dataclass(frozen=True)
class Polygon:
    """An area with holes.

    Attributes:
        outline: clockwise as seen in the picture; pixel (0, 0) is the square from (0, 0) to (1, 1).
        holes: counter-clockwise; they may touch the outline or each other in single points.
    """

    outline: Ring
    holes: tuple[Ring, ...] = ()

    def joined(self) -> Ring:
        """Outline and holes as one ring, for formats without holes.

        To each hole leads a line of no width, there and back, so that what is filled stays the same by the even-odd and
        by the non-zero rule.
        """
        if not self.holes:
            return self.outline
        order = np.argsort(self.outline[:, 1], kind="stable")
        heights = self.outline[order, 1]
        detours: dict[int, list[Ring]] = {}
        for hole in self.holes:
            start = hole[np.argmin(hole[:, 0])]
            middle = int(np.searchsorted(heights, start[1]))
            near = order[max(0, middle - _NEIGHBOURS) : middle + _NEIGHBOURS]
            place = int(near[np.argmin(np.abs(self.outline[near] - start).sum(axis=1))])
            turned = np.roll(hole, -int(np.argmin(hole[:, 0])), axis=0)
            detours.setdefault(place, []).append(np.concatenate([turned, turned[:1], self.outline[place : place + 1]]))
        parts, begin = [], 0
        for place in sorted(detours):
            parts += [self.outline[begin : place + 1], *detours[place]]
            begin = place + 1
        return np.concatenate([*parts, self.outline[begin:]])


def polygons(region: NDArray[np.bool_], tolerance: float = 0.0) -> list[Polygon]:
    """The polygons of a region, in the order of their first pixels (row by row).

    Args:
        region: bool [H, W]; pixels that touch over an edge are of one polygon, over a corner of two.
        tolerance: points may be left out where the line moves by no more than this, in pixels; 0 = exactly the pixels'
            edges. A line that would vanish is kept whole.

    Returns:
        polygons whose areas do not overlap and whose lines do not cross (with a tolerance they may, slightly).
    """
    if not region.any():
        return []
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    cut = np.pad(region[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    outlines: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for number, ring in _grouped(cut):
        shifted = simplified(ring, tolerance) + (left - 1, top - 1)
        if area(ring) > 0:
            outlines[number] = shifted
            holes.setdefault(number, [])
        else:
            holes.setdefault(number, []).append(shifted)
    return [Polygon(outline, tuple(holes[number])) for number, outline in outlines.items()]


def area(ring: Ring) -> float:
    """The signed area in square pixels: positive where the ring is clockwise in the picture."""
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def simplified(ring: Ring, tolerance: float) -> Ring:
    """A ring with fewer points (Douglas and Peucker), each left out no further than `tolerance` from the new line."""
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far, -1]] = True
    stack = [(0, far), (far, len(ring))]
    while stack:
        begin, end = stack.pop()
        if end - begin < 2:
            continue
        distances = _distances(closed[begin + 1 : end], closed[begin], closed[end])
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance:
            middle = begin + 1 + worst
            keep[middle] = True
            stack += [(begin, middle), (middle, end)]
    fewer = closed[:-1][keep[:-1]]
    return fewer if len(fewer) > 2 and area(fewer) * area(ring) > 0 else ring


def fill(rings: Sequence[Ring], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels whose centres lie inside an odd number of rings (the even-odd rule).

    Args:
        rings: outlines and holes alike, in any order; what lies outside of the image is cut off.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        bool [height, width].
    """
    flips = np.zeros((height, width + 1), dtype=np.int32)
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        upward = (start[:, 1] > end[:, 1])[:, None]
        above, below = np.where(upward, end, start), np.where(upward, start, end)
        first = np.clip(np.ceil(above[:, 1] - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(below[:, 1] - 0.5), 0, height).astype(np.int64)
        counts = last - first
        edge = np.repeat(np.arange(len(ring)), counts)
        row = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        (x0, y0), (x1, y1) = above[edge].T, below[edge].T
        x = x0 + (row + 0.5 - y0) * (x1 - x0) / np.where(y1 > y0, y1 - y0, 1.0)
        np.add.at(flips, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)), 1)
    return (np.cumsum(flips, axis=1)[:, :width] % 2).astype(bool)


def _distances(points: Ring, begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each point to the segment between two others."""
    along = end - begin
    length = float(along @ along)
    place = np.clip((points - begin) @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.hypot(*(points - begin - place[:, None] * along).T)


def _grouped(cut: NDArray[np.bool_]) -> Iterator[tuple[int, Ring]]:
    """The simple rings of a region that touches no border, each with the number of its polygon, outline first."""
    start, direction = _edges(cut)
    across = cut.shape[1] + 1
    walks, walk_of = _walks(start, direction, across)
    # An edge that goes north has the region on its right: it begins a run of pixels of a row.
    north = np.flatnonzero(direction == _NORTH)
    north = north[np.argsort(start[north])]
    begins = start[north] - across  # of the upper end: the corner at the top left of the run's first pixel
    polygon_of: dict[int, int] = {}
    corners = [np.array([(key % across, key // across) for key in walk], dtype=np.float64) for walk in walks]
    signs = [area(points) > 0 for points in corners]
    for number in sorted(range(len(walks)), key=lambda each: min(walks[each])):
        if signs[number]:
            polygon_of[number] = number
        else:
            # The pixel left of the hole's first one is the region's; its run begins at another ring, known already.
            first = min(walks[number])
            before = int(np.searchsorted(begins, first)) - 1
            polygon_of[number] = polygon_of[int(walk_of[north[before]])]
        for ring in _simple(corners[number]):
            yield polygon_of[number], ring


def _edges(cut: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start (y * (W + 1) + x of the corner) and direction of each pixel's edge, with the region on its right."""
    across = cut.shape[1] + 1
    down = cut[1:] ^ cut[:-1]
    y, x = np.nonzero(down)
    y += 1
    inside = cut[y, x]
    starts = [np.where(inside, y * across + x, y * across + x + 1)]
    directions = [np.where(inside, _EAST, _WEST)]
    y, x = np.nonzero(cut[:, 1:] ^ cut[:, :-1])
    x += 1
    inside = cut[y, x]
    starts.append(np.where(inside, (y + 1) * across + x, y * across + x))
    directions.append(np.where(inside, _NORTH, _SOUTH))
    return np.concatenate(starts), np.concatenate(directions)


def _walks(
    start: NDArray[np.int64], direction: NDArray[np.int64], across: int
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """The closed walks along the edges as their corners' keys, and the number of the walk of each edge."""
    end = start + np.array([dx + dy * across for dx, dy in _STEPS])[direction]
    keys = start * 4 + direction
    order = np.argsort(keys)
    keys = keys[order]
    following = np.full(len(start), -1)
    for turn in (3, 0, 1):  # left, straight, right; the last that is there counts: right stays with the same pixel
        wanted = end * 4 + (direction + turn) % 4
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        following = np.where(keys[place] == wanted, order[place], following)
    steps, ways, places = following.tolist(), direction.tolist(), start.tolist()
    walk_of = [-1] * len(steps)
    walks: list[list[int]] = []
    for first in range(len(steps)):
        if walk_of[first] >= 0:
            continue
        edge, corners, way = first, [], -1
        while walk_of[edge] < 0:
            walk_of[edge] = len(walks)
            if ways[edge] != way:
                way = ways[edge]
                corners.append(places[edge])
            edge = steps[edge]
        if len(corners) > 1 and ways[first] == way:  # began in the middle of a straight line
            corners.pop(0)
        walks.append(corners)
    return walks, np.array(walk_of)


def _simple(corners: Ring) -> Iterator[Ring]:
    """A walk that passes a corner twice taken apart into rings that do not; the outline first."""
    path: list[tuple[float, float]] = []
    place: dict[tuple[float, float], int] = {}
    rings: list[Ring] = []
    for x, y in corners.tolist():
        point = (x, y)
        if point in place:
            begin = place[point]
            rings.append(np.array(path[begin:]))
            for gone in path[begin + 1 :]:
                del place[gone]
            del path[begin + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    rings.append(np.array(path))
    yield from sorted(rings, key=area, reverse=True)
