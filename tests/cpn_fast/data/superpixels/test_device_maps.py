"""Maps in device memory: the patches of crops are those that `Geometry.apply_map` takes on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpn_fast.config.training import AugmentOptions
from cpn_fast.data.loading.augment import Geometry, draw_geometry
from cpn_fast.data.superpixels import device_maps
from cpn_fast.data.superpixels.device_maps import GEOMETRY_NUMBERS, DeviceMaps, geometry_numbers

SIZES = [(30, 44), (61, 20), (1, 9), (40, 40), (7, 64)]
LEVELS = 3
CPU = torch.device("cpu")


class Maps:
    """A cache of random labels, of which the last image's fill the range of their type."""

    def __init__(self, top: int) -> None:
        rng = np.random.default_rng(1)
        dtype = np.uint16 if top < 2**16 else np.int32
        self.maps = [[rng.integers(0, top + 1, size).astype(dtype) for _ in range(LEVELS)] for size in SIZES]
        self.top = top

    def map_size(self, record: int) -> tuple[int, int]:
        return SIZES[record]

    def levels(self, record: int) -> list[np.ndarray]:
        return self.maps[record]

    def segment_counts(self, record: int) -> tuple[int, ...]:
        return (self.top + 1,) * LEVELS


def geometries(count: int) -> tuple[list[Geometry], list[int], list[int]]:
    rng = np.random.default_rng(2)
    drawn, images, levels = [], [], []
    for number in range(count):
        image = number % len(SIZES)
        options = AugmentOptions(crop=24, resize=(10, 60))
        drawn.append(draw_geometry(*SIZES[image], options, rng))
        images.append(image)
        levels.append(int(rng.integers(LEVELS)))
    return drawn, images, levels


@pytest.mark.parametrize("top", [500, 65_535, 70_000])
@pytest.mark.parametrize("budget", [0, 9000, 10**9])
def test_against_apply_map(top: int, budget: int) -> None:
    cache = Maps(top)
    maps = DeviceMaps(cache, range(len(SIZES)), CPU, budget)  # type: ignore[arg-type]
    drawn, images, levels = geometries(60)
    assert {geometry.flip for geometry in drawn} == {True, False}
    assert any(geometry.extent != (24, 24) for geometry in drawn)
    numbers = np.stack([geometry_numbers(*each) for each in zip(drawn, images, levels, strict=True)])
    assert numbers.shape == (60, GEOMETRY_NUMBERS)
    for part in (slice(0, 1), slice(1, 7), slice(7, 60)):
        found = maps.crops(torch.from_numpy(numbers[part]), 24)
        assert found.dtype == torch.int32
        rows = zip(drawn[part], images[part], levels[part], strict=True)
        expected = [geometry.apply_map(cache.maps[image][level]) for geometry, image, level in rows]
        assert np.array_equal(found.numpy(), np.stack(expected))


def test_budget() -> None:
    cache = Maps(500)
    total = 2 * LEVELS * sum(height * width for height, width in SIZES)
    for budget in (0, 2639, 2640, 9000, total, 10**9):
        maps = DeviceMaps(cache, range(len(SIZES)), CPU, budget)  # type: ignore[arg-type]
        assert maps.bytes_on_device <= budget
        assert maps.bytes_on_device + maps.bytes_on_host == total
        assert (maps.bytes_on_device > 0) == (budget >= 2 * 30 * 44)
    assert maps.bytes_on_host == 0


def test_the_budget_is_a_quarter_of_what_is_free(monkeypatch):
    for free, expected in ((8 * 2**30, 2 * 2**30), (None, 16 * 2**30)):
        monkeypatch.setattr(device_maps, "free_memory", lambda device, free=free: free)
        assert device_maps.map_budget(torch.device("cuda")) == expected
