"""The random walk against the dense power of its matrix and SciPy's sparse steps; borders, tiny grids, what is no
number, and everything that a caller can get wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.ops.random_walk import OFFSETS, RADIUS, native, random_walk, reference
from cpn_kernels.ops.random_walk.limits import is_supported, launch_grid

spec = importlib.util.spec_from_file_location("walk_oracle", Path(__file__).with_name("walk_oracle.py"))
assert spec is not None and spec.loader is not None
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)

needs_native = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")

Walk = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "reference"])
def walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """The public function, by the native library or by the reference."""
    if request.param == "reference":
        monkeypatch.setattr(native, "is_supported", lambda *tensors: False)
    return random_walk


def draw(batch: int, classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    affinity = torch.rand(batch, 34, height, width, generator=generator)
    return affinity, torch.rand(batch, classes, height, width, generator=generator)


def check(found: Tensor, affinity: Tensor, maps: Tensor, steps: int, power: int = 8, atol: float = 1e-5) -> None:
    expected = torch.from_numpy(oracle.dense_walk(affinity.numpy(), maps.numpy(), steps, power))
    assert found.shape == maps.shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def test_the_offsets_are_half_a_disc() -> None:
    assert list(OFFSETS) == oracle.HALF_DISC and len(OFFSETS) == 34
    both = {*OFFSETS, *((-dy, -dx) for dy, dx in OFFSETS), (0, 0)}
    reach = range(-9, 10)
    assert both == {(dy, dx) for dy in reach for dx in reach if np.hypot(dy, dx) < RADIUS} and len(both) == 69


GRIDS = [(1, 1), (1, 2), (2, 1), (3, 3), (1, 30), (30, 1), (4, 4), (5, 5), (4, 9), (9, 4), (8, 16), (11, 17), (7, 25)]


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 64])
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_against_the_dense_power(walk: Walk, height: int, width: int, steps: int) -> None:
    affinity, maps = draw(2, 3, height, width)
    check(walk(affinity, maps, steps), affinity, maps, steps)


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6, 7, 8, 13, 21])
@pytest.mark.parametrize("power", [1, 3, 8])
def test_any_number_of_classes_and_power(walk: Walk, classes: int, power: int) -> None:
    affinity, maps = draw(1, classes, 6, 19)
    found = walk(affinity, 4 * maps - 2, 5, power=power)
    check(found, affinity, 4 * maps - 2, 5, power)


@pytest.mark.parametrize("shape", [(2, 5, 9, 12), (1, 1, 3, 4)])
def test_float64_keeps_its_digits(shape: tuple[int, int, int, int]) -> None:
    affinity, maps = (x.double() for x in draw(*shape))
    found = random_walk(affinity, maps, 64)
    assert found.dtype == torch.float64
    check(found, affinity, maps, 64, atol=1e-13)


def test_half_precision_is_widened(walk: Walk) -> None:
    affinity, maps = (x.bfloat16() for x in draw(1, 2, 6, 7))
    found = walk(affinity, maps, 9)
    assert found.dtype == torch.float32
    check(found, affinity.float(), maps.float(), 9)
    mixed = walk(affinity.double(), maps.float(), 9)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, found)


def test_against_scipy_at_the_size_of_an_image(walk: Walk) -> None:
    """47 x 63 is a VOC image at stride 8. SciPy's matrix is built by coordinates of the pixels' distances."""
    height, width = 47, 63
    affinity, maps = draw(1, 21, height, width)
    y, x = (grid.ravel() for grid in np.mgrid[:height, :width])
    number = np.full((height + 8, width + 8), -1)
    number[4:-4, 4:-4] = np.arange(height * width).reshape(height, width)
    matrix = scipy.sparse.identity(height * width, format="csr")
    for channel, (dy, dx) in enumerate(oracle.HALF_DISC):
        partner = number[y + 4 + dy, x + 4 + dx]
        there = partner >= 0
        values = affinity[0, channel].double().numpy().ravel()[there] ** 8
        one_way = scipy.sparse.coo_matrix((values, (np.flatnonzero(there), partner[there])), matrix.shape)
        matrix = matrix + one_way + one_way.T
    assert np.diff(matrix.indptr).max() == 69
    matrix = matrix @ scipy.sparse.diags(1 / np.asarray(matrix.sum(axis=0)).ravel())
    expected = maps[0].double().numpy().reshape(21, -1)
    for _ in range(64):
        expected = (matrix.T @ expected.T).T
    found = walk(affinity, maps, 64)[0].double().numpy().reshape(21, -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_constant_stays_and_nothing_leaves_its_range(walk: Walk) -> None:
    affinity, maps = draw(1, 3, 9, 14)
    maps[:, 0] = 0.25
    found = walk(affinity, maps, 64)
    torch.testing.assert_close(found[:, 0], maps[:, 0], rtol=0, atol=1e-5)
    assert found.amin((2, 3)).ge(maps.amin((2, 3)) - 1e-5).all()
    assert found.amax((2, 3)).le(maps.amax((2, 3)) + 1e-5).all()


def test_without_affinity_nothing_moves(walk: Walk) -> None:
    _, maps = draw(2, 3, 6, 11)
    assert torch.equal(walk(torch.zeros(2, 34, 6, 11), maps, 30), maps)


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -7.0])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (6, 9), (5, 17)])
def test_pairs_that_leave_the_grid_are_not_read(walk: Walk, height: int, width: int, nonsense: float) -> None:
    affinity, maps = draw(1, 2, height, width)
    expected = walk(affinity, maps, 3)
    for channel, (dy, dx) in enumerate(oracle.HALF_DISC):
        for y in range(height):
            for x in range(width):
                if y + dy >= height or not 0 <= x + dx < width:
                    affinity[0, channel, y, x] = nonsense
    assert torch.equal(walk(affinity, maps, 3), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (8, 20), (4, 10), (0, 20), (4, 16)])
def test_what_is_no_number_in_a_map_spreads_as_far_as_a_walk(walk: Walk, place: tuple[int, int], bad: float) -> None:
    affinity, maps = draw(1, 2, 9, 21)
    maps[0, 1, place[0], place[1]] = bad
    y, x = np.mgrid[:9, :21]
    reached = np.zeros((9, 21), dtype=bool)
    reached[place] = True
    for steps in (1, 2, 3):
        reached = np.array(
            [np.any(reached & (np.hypot(y - row, x - column) < 5)) for row in range(9) for column in range(21)]
        ).reshape(9, 21)
        found = walk(affinity, maps, steps)
        assert torch.isfinite(found[0, 0]).all()
        assert torch.equal(~torch.isfinite(found[0, 1]), torch.from_numpy(reached))


def test_an_affinity_that_is_no_number_shows_in_both_of_its_pixels(walk: Walk) -> None:
    affinity, maps = draw(1, 2, 9, 21)
    channel = oracle.HALF_DISC.index((3, -2))
    affinity[0, channel, 2, 9] = float("nan")
    found = walk(affinity, maps, 1)
    expected = torch.zeros(9, 21, dtype=torch.bool)
    expected[2, 9] = expected[5, 7] = True
    assert torch.equal(found[0].isnan(), expected.expand(2, 9, 21))


def test_memory_of_any_layout_and_the_input_as_it_was(walk: Walk) -> None:
    affinity, maps = draw(2, 3, 7, 10)
    expected = walk(affinity, maps, 3)
    turned = affinity.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    strided = torch.stack([maps, maps * 0], dim=4)[..., 0]
    assert not turned.is_contiguous() and not strided.is_contiguous()
    assert torch.equal(walk(turned, strided, 3), expected)
    one = maps[:1, :1].expand(2, 3, 7, 10)
    torch.testing.assert_close(walk(affinity, one, 3), walk(affinity, one.contiguous(), 3), rtol=0, atol=0)
    before = maps.clone(), affinity.clone()
    for steps in (0, 1, 2):
        found = walk(affinity, maps, steps)
        found.fill_(-1)
        assert torch.equal(maps, before[0]) and torch.equal(affinity, before[1])


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing_gives_nothing(walk: Walk, shape: tuple[int, int, int, int]) -> None:
    batch, _, height, width = shape
    assert walk(torch.zeros(batch, 34, height, width), torch.zeros(shape), 3).shape == shape


@needs_native
@pytest.mark.parametrize("shape", [(1, 1, 9, 11), (1, 1, 2, 3), (2, 1, 5, 30), (1, 7, 9, 11), (3, 5, 6, 7)])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, int, int, int]) -> None:
    """With fewer maps than threads these share the rows, else each has maps of its own."""
    affinity, maps = draw(*shape)
    found = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found.append(random_walk(affinity, maps, 33))
    check(found[0], affinity, maps, 33)
    assert all(torch.equal(other, found[0]) for other in found[1:])


@needs_native
def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.empty hands out is poisoned: output, and the workspace with all its margins."""
    affinity, maps = draw(2, 5, 9, 19)
    plain_empty, plain_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: plain_empty(*size, **kind).fill_(255))
    monkeypatch.setattr(torch, "empty_like", lambda x, **kind: plain_like(x, **kind).fill_(float("nan")))
    found = [random_walk(affinity, maps, steps) for steps in (1, 2, 5)]
    monkeypatch.undo()
    for steps, walked in zip((1, 2, 5), found, strict=True):
        check(walked, affinity, maps, steps)


@needs_native
@pytest.mark.parametrize(
    ("place", "value"),
    [("batch", -1), ("classes", -1), ("height", -1), ("width", -1), ("steps", -1), ("threads", 0), ("height", 2**30)],
)
def test_arguments_out_of_range_give_an_error_code_and_nothing_is_written(place: str, value: int) -> None:
    affinity, maps = draw(1, 2, 4, 5)
    output = torch.full_like(maps, 7)
    library = native._function()
    size = library.cpn_random_walk_cpu_workspace(1, 2, 4, 5)
    memory, address = native_library.workspace(size, torch.device("cpu"))
    given = {
        "affinity": affinity.data_ptr(), "maps": maps.data_ptr(), "batch": 1, "classes": 2, "height": 4, "width": 5,
        "steps": 2, "output": output.data_ptr(), "threads": 1, "workspace": address, "workspace_bytes": size,
    }  # fmt: skip
    assert library.cpn_random_walk_cpu(*(given | {place: value}).values()) == 1
    for short in ({"workspace_bytes": size - 64}, {"workspace_bytes": -5}, {"workspace": None}):
        assert library.cpn_random_walk_cpu(*(given | short).values()) == 2
    assert (output == 7).all()
    assert library.cpn_random_walk_cpu(*given.values()) == 0
    check(output, affinity, maps, 2, power=1)
    assert library.cpn_random_walk_cpu(*(given | {"steps": 0}).values()) == 0 and torch.equal(output, maps)
    if place in ("batch", "classes") or (place in ("height", "width") and value < 0):
        sizes = {"batch": 1, "classes": 2, "height": 4, "width": 5} | {place: value}
        assert library.cpn_random_walk_cpu_workspace(*sizes.values()) == -1
    del memory


@needs_native
def test_opcheck() -> None:
    affinity, maps = draw(1, 2, 5, 6)
    torch.library.opcheck(torch.ops.cpn.random_walk_native.default, (affinity, maps, 3))
    turned = maps.transpose(2, 3).contiguous().transpose(2, 3)
    torch.library.opcheck(torch.ops.cpn.random_walk_native.default, (affinity, turned, 1))


@pytest.mark.slow
def test_compiled_without_graph_breaks(walk: Walk) -> None:
    affinity, maps = draw(1, 2, 5, 6)
    compiled = torch.compile(lambda a, m: random_walk(a, m, 3), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(affinity, maps), walk(affinity, maps, 3), rtol=1e-6, atol=1e-6)


def test_the_exported_form_is_the_reference() -> None:
    class Walking(torch.nn.Module):
        def forward(self, affinity: Tensor, maps: Tensor) -> Tensor:
            return random_walk(affinity, maps, 2)

    program = torch.export.export(Walking(), draw(1, 2, 5, 6))
    assert "random_walk_native" not in str(program.graph)


@pytest.mark.slow
def test_gradients() -> None:
    affinity, maps = (x.double().requires_grad_() for x in draw(1, 2, 3, 6))
    assert torch.autograd.gradcheck(lambda a, m: random_walk(a, m, 3, power=2), (affinity, maps))
    single, plain = draw(1, 2, 3, 6)
    walked = random_walk(single.requires_grad_(), plain, 3)
    assert walked.requires_grad
    with torch.no_grad():
        assert not random_walk(single, plain, 3).requires_grad


def test_launches_within_32_bits() -> None:
    assert launch_grid(torch.empty(2, 5, 12, 11, device="meta")) == (2, 2, 2)
    assert launch_grid(torch.empty(1, 4, 16, 8, device="meta")) == (1, 1, 1)
    assert is_supported(torch.empty(1, 21, 20_000, 20_000, device="meta"))
    assert not is_supported(torch.empty(1, 1, 2**16, 2**15, device="meta"))
    assert not is_supported(torch.empty(2**31, 1, 1, 1, device="meta"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"affinity": torch.zeros(2, 33, 4, 5)}, r"affinity is \(2, 33, 4, 5\).*34"),
        ({"affinity": torch.zeros(2, 34, 4, 5, dtype=torch.int64)}, r"affinity: torch.int64"),
        ({"affinity": torch.zeros(34, 4, 5)}, r"affinity: .*4 dimensions"),
        ({"affinity": torch.zeros(1, 34, 4, 5)}, r"differ in B, h or w"),
        ({"affinity": torch.zeros(2, 34, 5, 4)}, r"differ in B, h or w"),
        ({"affinity": torch.zeros(2, 34, 4, 5, device="meta")}, r"on meta, maps on cpu"),
        ({"maps": torch.zeros(2, 3, 20)}, r"maps: .*4 dimensions"),
        ({"maps": torch.zeros(2, 3, 4, 5, dtype=torch.uint8)}, r"maps: torch.uint8"),
        ({"steps": -1}, r"steps is -1.*>= 0"),
        ({"steps": 2.0}, r"steps is 2.0.*integer"),
        ({"steps": True}, r"steps is True"),
        ({"power": 0}, r"power is 0.*>= 1"),
        ({"power": 1.5}, r"power is 1.5.*integer"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    given = {"affinity": torch.zeros(2, 34, 4, 5), "maps": torch.zeros(2, 3, 4, 5), "steps": 2, "power": 8} | change
    with pytest.raises(ValueError, match=message):
        random_walk(**given)


def test_powers_by_squaring() -> None:
    values = torch.linspace(0, 1, 11, dtype=torch.float64)
    for power in range(1, 20):
        np.testing.assert_allclose(reference.raised(values, power).numpy(), values.numpy() ** power, rtol=1e-14)
