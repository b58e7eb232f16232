"""The random walk's kernel against the dense power of its matrix in float64, at borders, tails and tiny grids."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cpn_kernels.ops.random_walk import random_walk
from cpn_kernels.ops.random_walk.limits import BLOCK, TOGETHER, launch_grid
from cpn_kernels.ops.random_walk.op import random_walk_op

spec = importlib.util.spec_from_file_location("walk_oracle", Path(__file__).parents[1] / "walk_oracle.py")
assert spec is not None and spec.loader is not None
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)


def draw(batch: int, classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    affinity = torch.rand(batch, 34, height, width, generator=generator)
    return affinity, torch.rand(batch, classes, height, width, generator=generator)


def check(found: Tensor, affinity: Tensor, maps: Tensor, steps: int, power: int = 8) -> None:
    expected = torch.from_numpy(oracle.dense_walk(affinity.cpu().numpy(), maps.cpu().numpy(), steps, power))
    assert found.dtype == torch.float32 and found.shape == maps.shape
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        *(((2, 5, 9, 19), steps) for steps in (1, 2, 5)),
        *((shape, 2) for shape in ((1, 1, 3, 4), (2, 4, 1, 6), (1, 2, 7, 1), (3, 1, 1, 1))),
    ],
    ids=str,
)
def test_against_the_dense_power(shape: tuple, steps: int, device: torch.device) -> None:
    affinity, maps = (x.to(device) for x in draw(*shape))
    check(random_walk(affinity, maps, steps), affinity, maps, steps)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize(
    ("pixels", "classes"),  # each is masked on its own: the two borders need not be crossed in every pairing
    [(BLOCK - 1, TOGETHER + 1), (BLOCK, TOGETHER), (BLOCK + 1, TOGETHER - 1), (BLOCK + 1, TOGETHER + 1)],
)
def test_tails_of_pixels_and_of_classes(pixels: int, classes: int, device: torch.device) -> None:
    height = 3 if pixels % 3 == 0 else 8 if pixels % 8 == 0 else 1
    affinity, maps = (x.to(device) for x in draw(1, classes, height, pixels // height))
    check(random_walk(affinity, maps, 2, power=3), affinity, maps, 2, power=3)


@pytest.mark.usefixtures("kernels_only")
def test_many_steps(device: torch.device) -> None:
    affinity, maps = (x.to(device) for x in draw(1, 2, 5, 6))
    check(random_walk(affinity, maps, 20), affinity, maps, 20)
    assert torch.equal(random_walk(affinity, maps, 0), maps)


@pytest.mark.usefixtures("kernels_only")
def test_pairs_that_leave_the_grid_are_not_read(device: torch.device) -> None:
    affinity, maps = draw(2, 3, 6, 9)
    expected = random_walk(affinity.to(device), maps.to(device), 2)
    for channel, (dy, dx) in enumerate(oracle.HALF_DISC):
        y, x = torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij")
        affinity[:, channel, (y + dy >= 6) | (x + dx < 0) | (x + dx >= 9)] = float("nan")
    assert affinity.isnan().any()
    assert torch.equal(random_walk(affinity.to(device), maps.to(device), 2), expected)


@pytest.mark.usefixtures("kernels_only")
def test_images_and_maps_do_not_meet(device: torch.device) -> None:
    """What is no number stays in its map, and spreads in it as far as a step goes."""
    affinity, maps = draw(2, 3, 9, 21)
    places = {(0, 2): (8, 20), (1, 0): (0, 0), (1, 2): (4, 10)}
    for (image, channel), (row, column) in places.items():
        maps[image, channel, row, column] = float("nan")
    found = random_walk(affinity.to(device), maps.to(device), 1).cpu()
    y, x = np.mgrid[:9, :21]
    for image in range(2):
        for channel in range(3):
            row, column = places.get((image, channel), (99, 99))
            reached = torch.from_numpy(np.hypot(y - row, x - column) < 5)
            assert torch.equal(found[image, channel].isnan(), reached), (image, channel)


@pytest.mark.usefixtures("kernels_only")
def test_an_affinity_that_is_no_number_shows_in_both_of_its_pixels(device: torch.device) -> None:
    affinity, maps = draw(1, 2, 9, 21)
    affinity[0, oracle.HALF_DISC.index((3, -2)), 2, 9] = float("nan")
    found = random_walk(affinity.to(device), maps.to(device), 1).cpu()
    expected = torch.zeros(9, 21, dtype=torch.bool)
    expected[2, 9] = expected[5, 7] = True
    assert torch.equal(found[0].isnan(), expected.expand(2, 9, 21))


@pytest.mark.usefixtures("kernels_only")
def test_memory_of_any_layout_and_the_input_as_it_was(device: torch.device) -> None:
    affinity, maps = (x.to(device) for x in draw(2, 3, 7, 10))
    expected = random_walk(affinity, maps, 3)
    before = maps.clone()
    turned = affinity.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    strided = torch.stack([maps, maps * 0], dim=4)[..., 0]
    assert not turned.is_contiguous() and not strided.is_contiguous()
    assert torch.equal(random_walk(turned, strided, 3), expected)
    assert torch.equal(maps, before)


def test_nothing_is_written_or_read_beyond_the_tensors(device: torch.device) -> None:
    """Maps and output within longer memory, which what is stored past them would change, and read show as NaN."""
    from cpn_kernels.ops.random_walk.triton_kernel import step_kernel

    affinity, maps = draw(1, TOGETHER + 1, 9, BLOCK // 9 + 1)
    _, classes, height, width = maps.shape
    guard, size = 2 * TOGETHER * BLOCK, maps.numel()
    held = [torch.full((size + 2 * guard,), float("nan"), device=device) for _ in range(2)]
    held[0][guard : guard + size] = maps.flatten().to(device)
    held[1][:] = 7.0
    weights = torch.full((affinity.numel() + 2 * guard,), float("nan"), device=device)
    weights[guard : guard + affinity.numel()] = affinity.flatten().to(device)
    blocks, groups, batch = launch_grid(maps)
    step_kernel[(blocks * groups * batch,)](
        *(weights[guard:], held[0][guard:], held[1][guard:]),
        *(classes, height, width, blocks, groups),
        BLOCK=BLOCK,
        TOGETHER=TOGETHER,
    )
    check(held[1][guard : guard + size].view(maps.shape), affinity, maps, 1, power=1)
    assert (held[1][:guard] == 7).all() and (held[1][guard + size :] == 7).all()


def test_opcheck(device: torch.device) -> None:
    affinity, maps = (x.to(device) for x in draw(1, 2, 5, 6))
    turned = maps.transpose(2, 3).contiguous().transpose(2, 3)
    for given, steps in ((maps, 1), (maps, 3), (turned, 2)):
        torch.library.opcheck(random_walk_op, (affinity, given, steps))


@pytest.mark.usefixtures("kernels_only")
def test_compiles_whole(device: torch.device) -> None:
    affinity, maps = (x.to(device) for x in draw(1, 2, 5, 6))
    compiled = torch.compile(lambda a, m: random_walk(a, m, 3), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(affinity, maps), random_walk(affinity, maps, 3))
