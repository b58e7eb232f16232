"""Complementary pairs at inference: whose pixels they show, and what becomes of their maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpn_fast.models import CamNet
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.labeller import Labeller
from cpn_fast.models.pairs import SIDE, TABLE, pair_cam, patterns, shown_pixels
from cpn_kernels.ops.cp_triplet import normalise_images


@pytest.fixture(scope="module")
def net() -> CamNet:
    torch.manual_seed(0)
    return CamNet(create_backbone("resnet38_tiny"), 3, "none").eval()


def picture(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, height, width, 3), generator=generator, dtype=torch.uint8)


def test_patterns_are_counted_halves_and_differ() -> None:
    """Known answer of Philox4x32-10 at key 0, counter 0 (Random123's test vectors): word 0 is 0x6627e8d5 < 2**31."""
    found = patterns(3)
    assert found.shape == (3, TABLE, TABLE) and found[0, 0, 0] == 0
    assert set(found.unique().tolist()) == {0.0, 1.0}
    for index in range(3):
        assert 0.47 < found[index].mean() < 0.53
    assert 0.45 < (found[0] == found[1]).float().mean() < 0.55
    assert torch.equal(patterns(1)[0], found[0])


def test_a_pattern_covers_an_image_of_any_size_in_patches() -> None:
    (pattern,) = patterns(1)
    shown = shown_pixels(pattern, SIDE * TABLE + 40, 3 * SIDE)
    assert shown.shape == (SIDE * TABLE + 40, 3 * SIDE)
    for row, column in ((0, 0), (SIDE - 1, SIDE - 1), (SIDE, 2 * SIDE), (5 * SIDE + 3, 3 * SIDE - 1)):
        assert shown[row, column] == pattern[row // SIDE, column // SIDE]
    assert torch.equal(shown[SIDE * TABLE :], shown[:40])


def test_a_pairs_map_is_of_each_view_where_it_shows_the_image() -> None:
    """With a network whose map is its view's first channel: the image comes back whole, at the grid of the pixels."""
    views = torch.rand(1, 3, 96, 128)
    shown = shown_pixels(patterns(1)[0], 96, 128)
    assert 0.2 < shown.mean() < 0.8
    assert torch.equal(pair_cam(lambda hidden: hidden[:, :1], views, shown, False), views[:, :1])
    assert torch.count_nonzero(pair_cam(lambda hidden: -hidden[:, :1], views, shown, False)) == 0
    # The other way round: what a view says of pixels that it hides is left out.
    inverse = pair_cam(lambda hidden: (hidden[:, :1] == 0).float(), views, shown, False)
    assert torch.count_nonzero(inverse) == 0


def test_a_mirrored_view_hides_mirrored_patches() -> None:
    view = torch.rand(1, 3, 64, 96)
    shown = shown_pixels(patterns(1)[0], 64, 96)
    seen: list[Tensor] = []
    pair_cam(lambda hidden: seen.append(hidden) or hidden[:, :1], torch.cat([view, view.flip(3)]), shown, True)
    for hidden in seen:
        assert torch.equal(hidden[0], hidden[1].flip(2))
    assert torch.equal(seen[0] + seen[1], torch.cat([view, view.flip(3)]))


def test_the_labeller_adds_the_mean_of_its_pairs(net: CamNet) -> None:
    images, labels = picture(64, 96), torch.ones(1, 3)
    labeller = Labeller(net, scales=(1.0,), flip=False, pairs=2)
    (found,) = labeller.scale_maps(images, labels).scales
    views = normalise_images(images, net.mean)
    with torch.no_grad():
        expected = net(views).cam.relu()
        for pattern in patterns(2):
            shown = shown_pixels(pattern, 64, 96)
            maps = [net(views * part).cam.relu() for part in (shown, 1 - shown)]
            weight = torch.nn.functional.interpolate(shown[None, None], size=maps[0].shape[2:], mode="bilinear")
            expected = expected + (maps[0] * weight + maps[1] * (1 - weight)) / 2
        expected = torch.nn.functional.interpolate(expected, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(found.cam, expected)
    plain = Labeller(net, scales=(1.0,), flip=False)
    assert not torch.allclose(plain(images, labels).cam, labeller(images, labels).cam, atol=1e-3)
    assert torch.equal(plain(images, labels).scores, labeller(images, labels).scores)


def test_no_pair_changes_nothing(net: CamNet) -> None:
    images, labels = picture(40, 56), torch.ones(1, 3)
    assert torch.equal(Labeller(net)(images, labels).rcam, Labeller(net, pairs=0)(images, labels).rcam)
    assert "shown" not in Labeller(net, pairs=2).state_dict()
