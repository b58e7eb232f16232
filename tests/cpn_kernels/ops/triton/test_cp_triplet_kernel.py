"""The triplet kernel against the reference, whose draws are tested against the published Philox vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpn_kernels.ops.cp_triplet import cp_triplet, reference
from cpn_kernels.ops.cp_triplet.op import cp_triplet_op

KEYS = torch.tensor([-5, 0x1234567890ABCDEF, 2**63 - 1, -(2**63)])


def sample(batch: int = 2, height: int = 37, width: int = 61, patches: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(0, patches, (batch, height, width), generator=generator, dtype=torch.int32)
    ids[:, : height // 8] = -1
    ids[0, :, -1:] = -1
    return images, ids, KEYS[:batch]


def exact(images: Tensor, patches: Tensor, keys: Tensor, p_hidden: float) -> tuple[Tensor, Tensor, Tensor]:
    """Triplet in float64, which of its pixels are shown, and the visible fraction."""
    images, patches, keys = images.cpu(), patches.cpu(), keys.cpu()
    if patches.ndim == 1:
        patches = reference.grid_patches(patches, images.shape[1], images.shape[2])
    hidden = reference.hidden_pixels(patches, keys, p_hidden)
    inside = patches >= 0
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (reference.IMAGENET_MEAN, reference.IMAGENET_STD))
    value = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    shown = torch.cat([inside, inside & ~hidden, hidden])[:, None]
    share = (inside & ~hidden).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return torch.where(shown, torch.cat([value] * 3), 0.0), shown, share


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p_hidden", [0.0, 0.3, 1.0])
def test_against_the_reference(p_hidden: float, dtype: torch.dtype, memory_format, device: torch.device) -> None:
    images, patches, keys = (x.to(device) for x in sample())
    triplet, visible = cp_triplet(images, patches, keys, p_hidden, dtype=dtype, memory_format=memory_format)
    assert triplet.dtype == dtype and triplet.is_contiguous(memory_format=memory_format)
    expected, shown, share = exact(images, patches, keys, p_hidden)
    tolerance = {"rtol": 2**-7, "atol": 1e-6} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(triplet.cpu().double(), expected, **tolerance)
    assert (triplet.cpu().masked_select(~shown) == 0).all()
    torch.testing.assert_close(visible.cpu(), share, rtol=0, atol=1e-7)
    full, hidden, complement = triplet.chunk(3)
    assert torch.equal(hidden + complement, full)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 3, 5), (1, 32, 32), (1, 33, 32)], ids=str)
def test_tails_and_every_kind_of_key(shape: tuple, device: torch.device) -> None:
    images, patches, keys = (x.to(device) for x in sample(*shape, patches=7))
    triplet, visible = cp_triplet(images, patches, keys, 0.5)
    expected, _, share = exact(images, patches, keys, 0.5)
    torch.testing.assert_close(triplet.cpu().double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(visible.cpu(), share, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
def test_integer_types_and_memory_layouts(dtype: torch.dtype, device: torch.device) -> None:
    images, patches, keys = (x.to(device) for x in sample())
    patches = patches.to(dtype)
    expected = cp_triplet(images, patches, keys, 0.5)
    turned = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    strided = torch.stack([patches, patches * 0], dim=3)[..., 0]
    pairs = torch.stack([keys, keys + 1], dim=1)[:, 0]
    for ours, theirs in zip(cp_triplet(turned, strided, pairs, 0.5), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("kernels_only")
def test_large_patch_numbers_draw_their_own_bits(device: torch.device) -> None:
    images, patches, keys = sample()
    patches = torch.where(patches >= 0, patches + (2**31 - 60), patches)
    triplet = cp_triplet(images.to(device), patches.to(device), keys.to(device), 0.5)[0]
    hidden = reference.first_word(keys[:, None, None], patches.long().clamp(min=0)) < 2**31
    shown = triplet[4:].abs().amax(1).cpu() > 0
    assert torch.equal(shown & (patches >= 0), hidden & (patches >= 0) & (triplet[:2].abs().amax(1).cpu() > 0))


@pytest.mark.usefixtures("kernels_only")
def test_grid_sides(device: torch.device) -> None:
    images, _, keys = sample()
    sides = torch.tensor([8, 56])
    triplet, visible = cp_triplet(images.to(device), sides.to(device), keys.to(device), 0.5)
    ids = torch.stack(
        [torch.tensor([[y // s * -(-61 // s) + x // s for x in range(61)] for y in range(37)]) for s in (8, 56)]
    )
    assert torch.equal(reference.grid_patches(sides, 37, 61), ids)
    expected, _, share = exact(images, ids, keys, 0.5)
    torch.testing.assert_close(triplet.cpu().double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(visible.cpu(), share, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("kernels_only")
def test_nothing_but_padding(device: torch.device) -> None:
    images, patches, keys = (x.to(device) for x in sample())
    triplet, visible = cp_triplet(images, torch.full_like(patches, -1), keys, 0.5)
    assert triplet.abs().max() == 0 and visible.tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("kernels_only")
def test_own_mean(device: torch.device) -> None:
    images, patches, keys = (x.to(device) for x in sample())
    values = (0.2, 0.5, 0.7)
    expected = reference.cp_triplet(images.cpu(), patches.cpu(), keys.cpu(), 0.5, values)[0]
    for mean in (values, torch.tensor(values, device=device)):
        triplet = cp_triplet(images, patches, keys, 0.5, mean=mean)[0]
        torch.testing.assert_close(triplet.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_opcheck(device: torch.device) -> None:
    images, patches, keys = (x.to(device) for x in sample())
    for layout in (True, False):
        arguments = (images, patches, keys, 2**31, None, [0.5, 0.5, 0.5], torch.float32, layout)
        torch.library.opcheck(cp_triplet_op, arguments)


@pytest.mark.usefixtures("kernels_only")
def test_compiles_whole(device: torch.device) -> None:
    images, patches, keys = (x.to(device) for x in sample())
    compiled = torch.compile(lambda i, p, k: cp_triplet(i, p, k, 0.5), fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(images, patches, keys), cp_triplet(images, patches, keys, 0.5), strict=True):
        assert torch.equal(ours, eager)
