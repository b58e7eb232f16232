"""The native CP triplet: the bits of the reference, whatever the layout, patch type or number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.ops.cp_triplet import cp_triplet, native, reference
from cpn_kernels.philox import first_word

pytestmark = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sample(batch: int, height: int, width: int, patches: int, dtype: torch.dtype = torch.int32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(-1, patches, (batch, height, width), generator=generator).to(dtype)
    keys = torch.randint(-(2**62), 2**62, (batch,), generator=generator)
    return images, ids, keys


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def assert_bits_of_the_reference(images: Tensor, patches: Tensor, keys: Tensor, p: float, mean=None) -> None:
    """In both types and both memory formats; `is_supported` says that it is the library that answers."""
    expected, expected_visible = reference.cp_triplet(images, patches, keys, p, mean)
    for dtype in (torch.float32, torch.bfloat16):
        assert native.is_supported(images, patches, dtype)
        for layout in (torch.channels_last, torch.contiguous_format):
            found, visible = cp_triplet(images, patches, keys, p, mean=mean, dtype=dtype, memory_format=layout)
            assert found.shape == expected.shape and found.dtype == dtype
            assert torch.equal(bits(found), bits(expected.to(dtype)))
            assert torch.equal(visible, expected_visible)
            assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("p_hidden", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_bits(p_hidden: float, dtype: torch.dtype) -> None:
    assert_bits_of_the_reference(*sample(3, 13, 17, 40, dtype), p_hidden)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (2, 1, 9), (5, 6, 4), (3, 31, 29)])
def test_any_number_of_threads(threads: int, shape: tuple[int, int, int]) -> None:
    torch.set_num_threads(threads)
    assert_bits_of_the_reference(*sample(*shape, 9), 0.5)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("height", "width", "sides"),
    [
        (13, 17, [1, 2, 3, 5, 7]),
        (6, 40, [6, 40, 41, 39, 30_000]),
        (1, 1, [1, 2]),
        (9, 1, [4, 9, 10]),
        (1, 9, [4, 9, 10]),
        (33, 35, [1, 8, 11, 35, 34]),
        (40, 56, [56, 8, 56]),
    ],
)
def test_grids(height: int, width: int, sides: list[int], dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    images, _, keys = sample(len(sides), height, width, 2)
    assert_bits_of_the_reference(images, torch.tensor(sides, dtype=dtype), keys, 0.4)


def test_a_grid_is_the_map_of_its_squares() -> None:
    """Apart from the reference: the patches of a grid written out by a loop, and handed over pixel by pixel."""
    images, _, keys = sample(2, 11, 14, 2)
    sides = torch.tensor([4, 5])
    patches = torch.empty(2, 11, 14, dtype=torch.int32)
    for image, side in enumerate(sides.tolist()):
        corners = [(top, left) for top in range(0, 11, side) for left in range(0, 14, side)]
        for patch, (top, left) in enumerate(corners):
            patches[image, top : top + side, left : left + side] = patch
    for found, expected in zip(
        cp_triplet(images, sides, keys, 0.5), cp_triplet(images, patches, keys, 0.5), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_grid_of_more_squares_than_the_table_holds() -> None:
    images, _, keys = sample(2, 270, 260, 2)
    assert_bits_of_the_reference(images, torch.tensor([1, 2]), keys, 0.3)


@pytest.mark.parametrize("side", [0, -1, -(2**40)])
def test_a_side_below_one_is_an_error(side: int) -> None:
    images, _, keys = sample(2, 4, 5, 2)
    with pytest.raises(RuntimeError, match="cp_triplet: an argument is out of range"):
        cp_triplet(images, torch.tensor([3, side]), keys, 0.5)


def test_bfloat16_is_rounded_to_the_nearest_even() -> None:
    """By hand on the bits: 0x3F80 8000 lies between two bfloat16 values, and the even one is below."""
    images, patches, keys = sample(1, 16, 16, 3)
    found = cp_triplet(images, patches, keys, 0.0, dtype=torch.bfloat16)[0][:1]
    exact = reference.cp_triplet(images, patches, keys, 0.0)[0][:1]
    word = exact.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
    assert torch.equal(found.contiguous().view(torch.int16).long() & 0xFFFF, rounded)
    assert ((word & 0xFFFF) > 0x8000).any() and ((word & 0xFFFF) < 0x8000).any()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("batch", -1),
        ("height", -1),
        ("width", -1),
        ("height", 2**31 - 1),  # of an image of more pixels than an int counts
        ("threads", 0),
        ("patch_bytes", 1),
        ("patch_bytes", 3),
        ("grid", 2),
        ("element_bytes", 8),
        ("element_bytes", 0),
        ("channels_last", -1),
        ("threshold", 2**32 + 1),
    ],
)
def test_arguments_out_of_range_give_an_error_code_and_nothing_is_written(place: str, value: int) -> None:
    images, patches, keys = sample(1, 4, 5, 3)
    colours, stack = torch.zeros(3, 256), torch.full((3, 4, 5, 3), 7.0)
    counts = torch.full((1, 2), 7)
    memory, address = native_library.workspace(1 << 20, torch.device("cpu"))
    given = {
        "images": images.data_ptr(), "patches": patches.data_ptr(), "patch_bytes": 4, "grid": 0,
        "keys": keys.data_ptr(), "threshold": 2**31, "colours": colours.data_ptr(), "element_bytes": 4,
        "channels_last": 1, "batch": 1, "height": 4, "width": 5, "triplet": stack.data_ptr(),
        "counts": counts.data_ptr(), "threads": 1, "workspace": address, "workspace_bytes": 1 << 20,
    }  # fmt: skip
    library = native._function()
    assert library.cpn_cp_triplet_cpu(*(given | {place: value}).values()) == 1
    assert (stack == 7).all() and (counts == 7).all()
    for short in ({"workspace_bytes": 100}, {"workspace_bytes": -5}, {"workspace": None}):
        assert library.cpn_cp_triplet_cpu(*(given | short).values()) == 2
    assert library.cpn_cp_triplet_cpu(*given.values()) == 0
    assert counts[0, 0] == int((patches >= 0).sum())
    assert library.cpn_cp_triplet_cpu_workspace(-1, 1) == library.cpn_cp_triplet_cpu_workspace(1, 0) == -1
    del memory


@pytest.mark.parametrize("patch", [0, 5, 70_000])
def test_a_patch_is_hidden_where_its_word_is_below_the_threshold_not_at_it(patch: int) -> None:
    """A probability that puts the threshold on a patch's own word: 32 bits of a word are exact in a double."""
    images, _, keys = sample(1, 2, 3, 2)
    patches = torch.full((1, 2, 3), patch, dtype=torch.int32)
    word = int(first_word(keys, torch.tensor([patch]))[0])
    assert cp_triplet(images, patches, keys, word / 2**32)[1].item() == 1
    assert cp_triplet(images, patches, keys, (word + 1) / 2**32)[1].item() == 0


def test_no_padding_and_all_padding() -> None:
    images, patches, keys = sample(2, 8, 9, 5)
    assert_bits_of_the_reference(images, patches.clamp(min=0), keys, 0.5)
    patches[1] = -1
    assert_bits_of_the_reference(images, patches, keys, 0.5)


def test_one_patch_per_pixel_and_ids_beyond_the_table() -> None:
    """More patches than the look-up table holds (65,536) are drawn at every pixel; so are stray large ids."""
    images, _, keys = sample(1, 270, 260, 2)
    patches = torch.arange(270 * 260).view(1, 270, 260).to(torch.int32)
    assert_bits_of_the_reference(images, patches, keys, 0.3)
    patches[0, 5, 6] = 3_000_000
    patches[0, 5, 7] = 65_536
    patches[0, 5, 8] = 65_535
    assert_bits_of_the_reference(images, patches, keys, 0.3)


def test_own_mean() -> None:
    images, patches, keys = sample(2, 8, 9, 5)
    assert_bits_of_the_reference(images, patches, keys, 0.5, (0.2, 0.4, 0.6))
    assert_bits_of_the_reference(images, patches, keys, 0.5, torch.tensor([0.1, 0.9, 0.5]))


def test_any_memory_layout() -> None:
    images, patches, keys = sample(2, 10, 12, 7)
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    turned = patches.transpose(1, 2).contiguous().transpose(1, 2)
    doubled = keys.repeat_interleave(2)[::2]
    assert not (planar.is_contiguous() or turned.is_contiguous() or doubled.is_contiguous())
    assert_bits_of_the_reference(planar, turned, doubled, 0.5)


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.empty hands out is poisoned: nothing of it may be left."""
    plain = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        tensor = plain(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 113)

    monkeypatch.setattr(torch, "empty", poisoned)
    images, patches, keys = sample(3, 9, 11, 6)
    layouts = (torch.channels_last, torch.contiguous_format)
    cases = [
        (p, dtype, layout) for p in (patches, torch.tensor([2, 4, 90])) for dtype in native.DTYPES for layout in layouts
    ]
    found = [cp_triplet(images, p, keys, 0.5, dtype=dtype, memory_format=layout) for p, dtype, layout in cases]
    monkeypatch.undo()
    for (p, dtype, _), (stack, visible) in zip(cases, found, strict=True):
        expected, expected_visible = reference.cp_triplet(images, p, keys, 0.5)
        assert torch.equal(stack, expected.to(dtype)) and torch.equal(visible, expected_visible)


def test_empty_batch_and_other_dtypes_take_some_way() -> None:
    images, patches, keys = sample(2, 4, 5, 3)
    found, visible = cp_triplet(images[:0], patches[:0], keys[:0], 0.5)
    assert found.shape == (0, 3, 4, 5) and visible.shape == (0,)
    unsigned = patches.clamp(min=0).to(torch.uint8)
    assert not native.is_supported(images, unsigned)
    assert torch.equal(cp_triplet(images, unsigned, keys, 0.5)[0], cp_triplet(images, unsigned.int(), keys, 0.5)[0])
    assert not native.is_supported(images, patches, torch.float64)
    double = cp_triplet(images, patches, keys, 0.5, dtype=torch.float64)[0]
    assert torch.equal(double, cp_triplet(images, patches, keys, 0.5)[0].double())
    for size in ((2, 0, 5, 3), (2, 4, 0, 3)):
        empty = torch.zeros(size, dtype=torch.uint8)
        for given in (torch.zeros(size[:3], dtype=torch.int32), torch.tensor([3, 4])):
            found, visible = cp_triplet(empty, given, keys, 0.5)
            assert found.shape == (6, 3, *size[1:3]) and visible.tolist() == [0.0, 0.0]


def test_opcheck_and_compile() -> None:
    images, patches, keys = sample(2, 6, 7, 5)
    sides = torch.tensor([3, 4])
    for given, dtype, channels_last in (
        (patches, torch.float32, True),
        (sides, torch.bfloat16, True),
        (patches, torch.bfloat16, False),
        (sides, torch.float32, False),
    ):
        colours = torch.rand(3, 256).to(dtype)
        arguments = (images, given, keys, colours, 2**31, channels_last)
        torch.library.opcheck(torch.ops.cpn.cp_triplet_native.default, arguments)
    compiled = torch.compile(lambda i, p, k: cp_triplet(i, p, k, 0.5), fullgraph=True)
    for given in (patches, sides):
        for found, expected in zip(compiled(images, given, keys), cp_triplet(images, given, keys, 0.5), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_exported_form_is_the_reference() -> None:
    images, patches, keys = sample(1, 6, 7, 5)

    class Triplet(torch.nn.Module):
        def forward(self, images: Tensor, patches: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
            return cp_triplet(images, patches, keys, 0.5)

    program = torch.export.export(Triplet(), (images, patches, keys))
    assert "cp_triplet_native" not in str(program.graph)
