"""Outlines against shapes drawn by other libraries: scikit-image, scipy, Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon2mask

from cpn_fast.convert.polygons import Polygon, area, fill, polygons, simplified


def drawn(ring: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A ring filled by scikit-image, whose points are at the pixels' centres and (row, column)."""
    # Moved by less than what any test resolves, so that no centre lies on a line, where its rule is another.
    return polygon2mask(shape, ring[:, ::-1] - 0.5 + 1e-6)


def drawn_with_holes(parts: list[Polygon], shape: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    for part in parts:
        mask |= drawn(part.outline, shape) & ~np.any([drawn(hole, shape) for hole in part.holes] or [mask & False], 0)
    return mask


def blob(size: int = 120) -> NDArray[np.bool_]:
    """A smooth shape with two holes, and a second one."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((size, size)), 7)
    region = noise > 0.2 * noise.std()
    y, x = np.mgrid[:size, :size]
    region |= (y - 60) ** 2 + (x - 60) ** 2 < 30**2
    region &= (y - 50) ** 2 + (x - 50) ** 2 > 6**2
    return region & ((y - 65) ** 2 + (x - 68) ** 2 > 5**2)


def test_one_pixel_a_block_and_a_frame() -> None:
    region = np.zeros((6, 7), dtype=bool)
    region[2, 3] = True
    (part,) = polygons(region)
    assert part.outline.tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]] and part.holes == ()
    region[1:5, 1:6] = True
    (part,) = polygons(region)
    assert part.outline.tolist() == [[1, 1], [6, 1], [6, 5], [1, 5]]
    region[2:4, 3] = False
    (part,) = polygons(region)
    (hole,) = part.holes
    assert sorted(hole.tolist()) == [[3, 2], [3, 4], [4, 2], [4, 4]]
    assert area(part.outline) == 20 and area(hole) == -2
    assert polygons(np.zeros((3, 3), dtype=bool)) == []


def test_an_island_in_a_hole_is_a_polygon_of_its_own() -> None:
    region = np.ones((7, 7), dtype=bool)
    region[1:6, 1:6] = False
    region[3, 3] = True
    outer, inner = polygons(region)
    assert area(outer.outline) == 49 and [area(hole) for hole in outer.holes] == [-25]
    assert area(inner.outline) == 1 and inner.holes == ()


def test_noise_comes_back_pixel_by_pixel_and_no_ring_passes_a_point_twice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        region = rng.random(rng.integers(1, 14, 2)) < rng.choice([0.3, 0.5, 0.7, 0.9])
        parts = polygons(region)
        labels, count = ndimage.label(region)
        assert len(parts) == count
        for part in parts:
            for ring in (part.outline, *part.holes):
                assert len({tuple(point) for point in ring.tolist()}) == len(ring)
            mine = drawn_with_holes([part], region.shape)
            assert len(np.unique(labels[mine])) == 1
            assert area(part.outline) + sum(map(area, part.holes)) == mine.sum()
        np.testing.assert_array_equal(drawn_with_holes(parts, region.shape), region)


@pytest.mark.parametrize(("tolerance", "least"), [(0.0, 1.0), (0.5, 0.99), (1.0, 0.97)])
def test_with_a_tolerance_there_are_fewer_points_and_the_shape_stays(tolerance: float, least: float) -> None:
    region = blob()
    exact, parts = polygons(region), polygons(region, tolerance)
    mask = drawn_with_holes(parts, region.shape)
    assert (mask & region).sum() / (mask | region).sum() >= least
    assert not mask[50, 50] and not mask[65, 68]  # holes stay holes
    assert [len(part.holes) for part in parts] == [len(part.holes) for part in exact]
    if tolerance:
        assert sum(len(part.outline) for part in parts) < 0.9 * sum(len(part.outline) for part in exact)
    for part, fewer in zip(exact, parts, strict=True):
        for point in part.outline:  # none is further from the new line than the tolerance
            begin, along = fewer.outline, np.roll(fewer.outline, -1, axis=0) - fewer.outline
            place = np.clip(((point - begin) * along).sum(1) / (along**2).sum(1), 0, 1)
            assert np.hypot(*(point - begin - place[:, None] * along).T).min() <= tolerance + 1e-9


def test_what_would_vanish_is_kept() -> None:
    region = np.zeros((9, 9), dtype=bool)
    region[4, 4] = True
    assert len(polygons(region, 50.0)[0].outline) == 4
    long = np.array([[0, 0], [9, 0], [9, 1], [5, 1], [5, 2], [0, 2]], dtype=float)
    assert simplified(long, 20.0) is long


def test_joined_rings_cover_the_same_for_scikit_image() -> None:
    region = blob()
    region[60:64:2, 55:65:2] = False  # many small holes
    parts = polygons(region)
    assert max(len(part.holes) for part in parts) > 5
    mask = np.zeros(region.shape, dtype=bool)
    for part in parts:
        mask |= drawn(part.joined(), region.shape)
    np.testing.assert_array_equal(mask, region)


def test_fill_is_scikit_images_polygon_on_random_ones() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        ring = rng.uniform(-5, 30, (int(rng.integers(3, 9)), 2))
        np.testing.assert_array_equal(fill([ring], 21, 26), polygon2mask((21, 26), ring[:, ::-1] - 0.5))
    square = np.array([[1, 1], [9, 1], [9, 9], [1, 9]], dtype=float)
    assert fill([square, square[::-1] / 2 + 2], 10, 10).sum() == 64 - 16
    assert not fill([square + 100], 10, 10).any() and not fill([], 3, 3).any()


def test_time_grows_with_the_outline_not_with_its_square() -> None:
    """A comb of n teeth: 16 times the teeth in one ring with a hole in each must not cost 256 times the steps."""
    import time

    def seconds(teeth: int) -> float:
        region = np.ones((5, 4 * teeth), dtype=bool)
        region[:2, ::4] = False
        region[3, 1::4] = False
        begin = time.process_time()
        (part,) = polygons(region)
        part.joined()
        assert len(part.holes) == teeth
        return time.process_time() - begin

    seconds(100)
    assert seconds(3200) < 100 * max(seconds(200), 0.002)
