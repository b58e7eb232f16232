"""The CP triplet against a per-pixel loop, and the identities of the paper."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cpn_kernels.ops.cp_triplet import IMAGENET_MEAN, IMAGENET_STD, cp_triplet, normalise_images


def python_word(patch: int, key: int) -> int:
    """Word 0 of philox4x32-10 in Python integers."""
    c, k = [patch, 0, 0, 0], [key % 2**32, (key % 2**64) >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(right >> 32) ^ c[1] ^ k[0], right % 2**32, (left >> 32) ^ c[3] ^ k[1], left % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[0]


def sample(batch: int = 2, height: int = 9, width: int = 11, patches: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(0, patches, (batch, height, width), generator=generator, dtype=torch.int32)
    ids[:, :2] = -1
    ids[0, :, -1] = -1
    keys = torch.tensor([-5, 0x1234567890ABCDEF, 77])[:batch]
    return images, ids, keys


@pytest.mark.parametrize("p_hidden", [0.1, 0.5, 0.75])
def test_against_loop(p_hidden: float) -> None:
    images, patches, keys = sample()
    triplet, visible = cp_triplet(images, patches, keys, p_hidden)
    assert triplet.dtype == visible.dtype == torch.float32
    batch, height, width = patches.shape
    expected = torch.zeros(3 * batch, 3, height, width, dtype=torch.float64)
    for b in range(batch):
        counted = shown = 0
        for y, x in itertools.product(range(height), range(width)):
            patch = int(patches[b, y, x])
            if patch == -1:
                continue
            hidden = python_word(patch, int(keys[b])) < int(p_hidden * 2**32)
            counted, shown = counted + 1, shown + (not hidden)
            for c in range(3):
                value = (int(images[b, y, x, c]) / 255 - IMAGENET_MEAN[c]) / IMAGENET_STD[c]
                expected[b, c, y, x] = value
                expected[(2 if hidden else 1) * batch + b, c, y, x] = value
        assert float(visible[b]) == pytest.approx(shown / counted, abs=1e-7)
    torch.testing.assert_close(triplet.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(triplet == 0, (expected == 0))


def test_black_and_white_against_the_numbers_of_torchvision() -> None:
    """(0 - mean) / std and (1 - mean) / std with ImageNet's mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225."""
    images = torch.tensor([[[[0, 0, 0], [255, 255, 255]]]], dtype=torch.uint8)
    black, white = normalise_images(images)[0, :, 0].T.double()
    torch.testing.assert_close(black, torch.tensor([-2.117904, -2.035714, -1.804444]).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(white, torch.tensor([2.248908, 2.428571, 2.640000]).double(), rtol=0, atol=1e-5)


def test_the_pair_adds_up_exactly() -> None:
    images, patches, keys = sample()
    full, hidden, complement = cp_triplet(images, patches, keys, 0.5)[0].chunk(3)
    assert torch.equal(hidden + complement, full)
    assert (hidden * complement == 0).all()
    padding = (patches < 0)[:, None].expand_as(full)
    assert (full[padding] == 0).all()
    inside = ~(patches < 0)[:, None].expand_as(full)
    assert torch.equal(full[inside], normalise_images(images)[inside])


@pytest.mark.parametrize(("p_hidden", "fraction"), [(0.0, 1.0), (1.0, 0.0)])
def test_extreme_probabilities(p_hidden: float, fraction: float) -> None:
    images, patches, keys = sample()
    triplet, visible = cp_triplet(images, patches, keys, p_hidden)
    full, hidden, complement = triplet.chunk(3)
    assert visible.tolist() == [fraction, fraction]
    assert torch.equal(hidden if fraction else complement, full)
    assert (complement if fraction else hidden).abs().max() == 0


def test_one_patch_per_image_and_per_pixel() -> None:
    images, _, _ = sample(batch=3)
    keys = torch.tensor([0, 1, 2])
    whole = torch.zeros(3, 9, 11, dtype=torch.int64)
    visible = cp_triplet(images, whole, keys, 0.5)[1]
    expected = [float(python_word(0, key) >= 2**31) for key in (0, 1, 2)]
    assert visible.tolist() == expected
    assert {0.0, 1.0} == set(expected)  # the keys show both
    large = torch.zeros(1, 300, 300, 3, dtype=torch.uint8)
    pixels = torch.arange(300 * 300).view(1, 300, 300)
    share = float(cp_triplet(large, pixels, keys[:1], 0.3)[1])
    assert abs(share - 0.7) < 4 * np.sqrt(0.21 / 90_000)


def test_a_draw_depends_on_key_and_patch_alone() -> None:
    images, patches, keys = sample()
    both = cp_triplet(images, patches, keys, 0.5)[0].view(3, 2, 3, 9, 11)
    swapped = cp_triplet(images.flip(0), patches.flip(0), keys.flip(0), 0.5)[0].view(3, 2, 3, 9, 11)
    assert torch.equal(both, swapped.flip(1))
    mirrored = cp_triplet(images.flip(2), patches.flip(2), keys, 0.5)[0].view(3, 2, 3, 9, 11)
    assert torch.equal(both, mirrored.flip(4))


def test_grid_sides_stand_for_their_patches() -> None:
    images, _, keys = sample()
    sides = torch.tensor([2, 4])
    ids = torch.tensor([[[y // s * -(-11 // s) + x // s for x in range(11)] for y in range(9)] for s in (2, 4)])
    for ours, theirs in zip(cp_triplet(images, sides, keys, 0.5), cp_triplet(images, ids, keys, 0.5), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_dtype_and_memory(memory_format: torch.memory_format) -> None:
    images, patches, keys = sample()
    expected = cp_triplet(images, patches, keys, 0.5)[0]
    assert expected.is_contiguous(memory_format=torch.channels_last)
    triplet = cp_triplet(images, patches, keys, 0.5, dtype=torch.bfloat16, memory_format=memory_format)[0]
    assert triplet.is_contiguous(memory_format=memory_format)
    assert torch.equal(triplet, expected.bfloat16())


def test_only_padding() -> None:
    images, patches, keys = sample()
    triplet, visible = cp_triplet(images, torch.full_like(patches, -1), keys, 0.5)
    assert triplet.abs().max() == 0
    assert visible.tolist() == [0.0, 0.0]


def test_own_mean_is_the_hidden_colour() -> None:
    images = torch.full((1, 2, 2, 3), 51, dtype=torch.uint8)
    normalised = normalise_images(images, mean=(0.2, 0.0, 0.2))
    assert normalised[:, [0, 2]].abs().max() < 1e-6
    torch.testing.assert_close(normalised[0, 1], torch.full((2, 2), 0.2 / 0.224))


@pytest.mark.slow
def test_compiled_without_graph_breaks() -> None:
    images, patches, keys = sample()
    compiled = torch.compile(lambda i, p, k: cp_triplet(i, p, k, 0.5), fullgraph=True)
    for ours, eager in zip(compiled(images, patches, keys), cp_triplet(images, patches, keys, 0.5), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 9, 11)}, r"images are torch.float32 .*uint8 \[B, H, W, 3\]"),
        ({"patches": torch.zeros(2, 9, 12, dtype=torch.int32)}, r"patches are .*\(2, 9, 12\).*\(2, 9, 11\)"),
        ({"patches": torch.zeros(2, 9, 11)}, r"patches are torch.float32.*integers"),
        ({"keys": torch.zeros(2, dtype=torch.int32)}, r"keys are torch.int32.*int64"),
        ({"p_hidden": 1.5}, r"p_hidden is 1.5.*\[0, 1\]"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    images, patches, keys = sample()
    arguments = {"images": images, "patches": patches, "keys": keys, "p_hidden": 0.5} | change
    with pytest.raises(ValueError, match=message):
        cp_triplet(**arguments)
