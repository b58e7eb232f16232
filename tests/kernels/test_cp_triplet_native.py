"""The native CP triplet: the bits of the reference, whatever the layout, patch type or number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.cp_triplet import cp_triplet, native, reference

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


def assert_bits_of_the_reference(images: Tensor, patches: Tensor, keys: Tensor, p: float, mean=None) -> None:
    assert native.suits(images, patches)
    found, visible = cp_triplet(images, patches, keys, p, mean=mean)
    expected, expected_visible = reference.cp_triplet(images, patches, keys, p, mean)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert torch.equal(
        found.view(torch.int32), expected.contiguous(memory_format=torch.channels_last).view(torch.int32)
    )
    assert torch.equal(visible, expected_visible)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("p_hidden", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_bits(p_hidden: float, dtype: torch.dtype) -> None:
    assert_bits_of_the_reference(*sample(3, 13, 17, 40, dtype), p_hidden)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (2, 1, 9), (5, 6, 4), (3, 31, 29)])
def test_any_number_of_threads(threads: int, shape: tuple[int, int, int]) -> None:
    torch.set_num_threads(threads)
    assert_bits_of_the_reference(*sample(*shape, 9), 0.5)


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
    found, visible = cp_triplet(images, patches, keys, 0.5)
    monkeypatch.undo()
    expected, expected_visible = reference.cp_triplet(images, patches, keys, 0.5)
    assert torch.equal(found, expected) and torch.equal(visible, expected_visible)


def test_empty_batch_and_other_dtypes_take_some_way() -> None:
    images, patches, keys = sample(2, 4, 5, 3)
    found, visible = cp_triplet(images[:0], patches[:0], keys[:0], 0.5)
    assert found.shape == (0, 3, 4, 5) and visible.shape == (0,)
    unsigned = patches.clamp(min=0).to(torch.uint8)
    assert not native.suits(images, unsigned)
    assert torch.equal(cp_triplet(images, unsigned, keys, 0.5)[0], cp_triplet(images, unsigned.int(), keys, 0.5)[0])


def test_opcheck_and_compile() -> None:
    images, patches, keys = sample(2, 6, 7, 5)
    colours = torch.rand(3, 256)
    torch.library.opcheck(torch.ops.cpn.cp_triplet_native.default, (images, patches, keys, colours, 2**31))
    compiled = torch.compile(lambda i, p, k: cp_triplet(i, p, k, 0.5), fullgraph=True)
    for found, expected in zip(compiled(images, patches, keys), cp_triplet(images, patches, keys, 0.5), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_exported_form_is_the_reference() -> None:
    images, patches, keys = sample(1, 6, 7, 5)

    class Triplet(torch.nn.Module):
        def forward(self, images: Tensor, patches: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
            return cp_triplet(images, patches, keys, 0.5)

    program = torch.export.export(Triplet(), (images, patches, keys))
    assert "cp_triplet_native" not in str(program.graph)
