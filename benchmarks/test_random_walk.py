"""The native random walk against SciPy's sparse steps and against dense squarings, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.ops.random_walk import OFFSETS, random_walk

CLASSES, POWER = 21, 8

pytestmark = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Affinities of a picture of smooth patches, from about 0.2 to 1, and maps in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    affinity = 1 - 0.8 * torch.rand(1, len(OFFSETS), height, width, generator=generator) ** 2
    return affinity, torch.rand(1, CLASSES, height, width, generator=generator)


def sparse_transition(affinity: Tensor) -> sparse.csr_array:
    """Rows of weights that sum to 1, float32 [N, N]."""
    _, _, height, width = affinity.shape
    number = np.arange(height * width).reshape(height, width)
    rows, columns, values = [number.ravel()], [number.ravel()], [np.ones(number.size, np.float32)]
    for channel, (dy, dx) in enumerate(OFFSETS):
        left, right = max(0, -dx), width - max(0, dx)
        one = number[: height - dy, left:right].ravel()
        other = number[dy:, left + dx : right + dx].ravel()
        weight = affinity[0, channel, : height - dy, left:right].numpy().ravel() ** POWER
        rows, columns, values = [*rows, one, other], [*columns, other, one], [*values, weight, weight]
    matrix = sparse.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    return sparse.csr_array(sparse.diags_array((1 / totals).astype(np.float32)) @ matrix)


def check_close(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found[0].numpy().reshape(CLASSES, -1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "steps"),
    [pytest.param(47, 63, 64, id="stride 8, 64 steps"), pytest.param(94, 125, 256, id="stride 4, 256 steps")],
)
def test_random_walk_against_scipy(against: Callable[..., float], height: int, width: int, steps: int) -> None:
    """A 500 x 375 image. SciPy's matrix is built beforehand; ours takes powers and sums as part of what is timed."""
    affinity, maps = scene(height, width)
    matrix = sparse_transition(affinity)
    columns = np.ascontiguousarray(maps[0].numpy().reshape(CLASSES, -1).T)

    def peer() -> np.ndarray:
        walked = columns
        for _ in range(steps):
            walked = matrix @ walked
        return walked.T

    against(
        candidate=lambda: random_walk(affinity, maps, steps, POWER),
        peer=peer,
        agree=lambda: check_close(random_walk(affinity, maps, steps, POWER), peer()),
        items=1,
    )


def test_random_walk_against_dense_squarings(against: Callable[..., float]) -> None:
    """Half of that image's sides at stride 8, where the dense matrix still fits well: 64 steps are six squarings."""
    affinity, maps = scene(24, 32)
    matrix = torch.from_numpy(sparse_transition(affinity).toarray())
    columns = maps[0].flatten(1).T.contiguous()

    def peer() -> Tensor:
        power = matrix
        for _ in range(6):
            power = power @ power
        return (power @ columns).T

    against(
        candidate=lambda: random_walk(affinity, maps, 64, POWER),
        peer=peer,
        agree=lambda: check_close(random_walk(affinity, maps, 64, POWER), peer().numpy()),
        items=1,
    )
