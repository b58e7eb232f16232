"""PCM on raw features: a case by hand, a float64 loop, and the labeller's order of fusing and refining."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cpn_fast.config.refine import RefineOptions
from cpn_fast.models import CamNet
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.labeller import Labeller, fitted_size, scaled_views
from cpn_fast.models.refinement import raw_features, refine_raw

RAW = RefineOptions("raw", "fused")


@pytest.fixture(scope="module")
def net() -> CamNet:
    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), 3, "none").eval()
    with torch.no_grad():
        net.classifier.weight.abs_()  # maps of an untrained network that are not all zero
    return net


def picture(height: int, width: int, seed: int = 2) -> torch.Tensor:
    """uint8 [1, H, W, 3], smooth enough that features differ between its parts."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(large).copy())[None]


def test_by_hand() -> None:
    # Two kinds of pixels: their features point opposite ways about the mean, so each kind averages over itself.
    features = torch.tensor([[[[5.0, 5.0, 5.0, 5.0]], [[2.0, 2.0, 4.0, 4.0]]]])
    cam = torch.tensor([[[[8.0, 0.0, 0.0, 4.0]]]])
    refined = refine_raw(cam, features, torch.ones(1, 1), "max")
    high, low = 8 / (8 + 1e-5), 4 / (8 + 1e-5)
    half = 2 / (2 + 1e-5) / 2  # the mean of two pixels, with the affinities' eps
    expected = torch.tensor([[[[high * half, high * half, low * half, low * half]]]])
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("power", "map_norm"), [(1.0, "minmax"), (1.5, "minmax"), (2.0, "max")])
def test_against_a_loop_in_float64(power: float, map_norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    mid, high = torch.randn(1, 4, 3, 5, generator=generator), torch.randn(1, 6, 3, 5, generator=generator)
    cam = torch.randn(1, 3, 3, 5, generator=generator)
    labels = [1.0, 0.0, 1.0]
    features = raw_features(mid, high, (3, 5))
    found = refine_raw(cam, features, torch.tensor([labels]), map_norm, power)

    vectors = []
    for pixel in range(15):
        vector: list[float] = []
        for stage in (mid, high):
            values = stage[0].flatten(1)[:, pixel].double().numpy()
            vector += list((values - values.mean()) / math.sqrt(values.var() + 1e-5))
        vectors.append(vector)
    centred = np.array(vectors) - np.mean(vectors, axis=0)
    raw = np.maximum(cam[0].flatten(1).double().numpy(), 0)
    maps = np.zeros_like(raw)
    for c in np.flatnonzero(labels):
        low, top = raw[c].min(), raw[c].max()
        shifted = np.maximum(raw[c] - low - 1e-5, 0) / (top - low + 1e-5)
        maps[c] = shifted if map_norm == "minmax" else raw[c] / (top + 1e-5)
    for pixel in range(15):
        maps[np.arange(3) != maps[:, pixel].argmax(), pixel] = 0
    expected = np.zeros_like(maps)
    for j in range(15):
        total = 1e-5
        for i in range(15):
            cosine = centred[i] @ centred[j] / math.sqrt(centred[i] @ centred[i] * (centred[j] @ centred[j]))
            total += max(cosine, 0.0) ** power
            expected[:, j] += maps[:, i] * max(cosine, 0.0) ** power
        expected[:, j] /= total
    np.testing.assert_allclose(found[0].flatten(1).numpy(), expected, rtol=0, atol=2e-6)
    assert expected[0].max() > 0.2 and not expected[1].any()


def test_positions_that_are_all_alike_keep_their_own_map() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, 1, 1, generator=generator).repeat(1, 1, 2, 3) + 1e-6 * torch.randn(
        1, 8, 2, 3, generator=generator
    )
    cam = torch.rand(1, 1, 2, 3, generator=generator)
    found = refine_raw(cam, features, torch.ones(1, 1), "max")
    torch.testing.assert_close(found, cam / (cam.max() + 1e-5))


def test_stages_on_another_grid_come_to_that_of_the_cam() -> None:
    mid = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    found = raw_features(mid, mid[:, :, ::2, ::2], (3, 5))
    assert found.shape == (2, 8, 3, 5)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(2, 3, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, 4:].square().mean(dim=1), torch.ones(2, 3, 5), rtol=0, atol=1e-3)


def test_fused_is_one_refinement_of_the_summed_cams(net: CamNet) -> None:
    from cpn_kernels.cam_norm import normalise_cam
    from cpn_kernels.ops.cp_triplet import normalise_images

    image, labels = picture(48, 80), torch.tensor([[1.0, 0, 1]])
    with torch.no_grad():
        found = Labeller(net, scales=(0.5, 1.0), refine=RAW)(image, labels)
        view = normalise_images(image, net.mean)
        half = F.interpolate(view, size=(24, 40), mode="bilinear")
        grid, total, features = (6, 10), 0.0, 0.0
        for scaled, mirrored in itertools.product((half, view), (False, True)):
            out = net(scaled.flip(3) if mirrored else scaled, raw=True)
            cam = F.interpolate(out.cam.relu(), size=grid, mode="bilinear")
            total = total + (cam.flip(3) if mirrored else cam)
            if scaled is view:
                features = features + (out.features.flip(3) if mirrored else out.features) / 2
        refined = F.interpolate(refine_raw(total, features, labels), size=(48, 80), mode="bilinear")
    torch.testing.assert_close(found.rcam, normalise_cam(refined, labels), rtol=0, atol=1e-5)
    assert (found.rcam - found.cam).abs().max() > 0.1


def test_at_scale_sums_the_refinements(net: CamNet) -> None:
    from cpn_kernels.cam_norm import normalise_cam
    from cpn_kernels.ops.cp_triplet import normalise_images

    image, labels = picture(48, 80), torch.tensor([[1.0, 0, 1]])
    with torch.no_grad():
        found = Labeller(net, scales=(0.5, 1.0), flip=False, refine=RefineOptions("raw", "scale"))(image, labels)
        total = 0.0
        for scale in (0.5, 1.0):
            out = net(scaled_views(normalise_images(image, net.mean), scale, False), raw=True)
            refined = refine_raw(out.cam, out.features, labels)
            total = total + F.interpolate(refined, size=(48, 80), mode="bilinear")
    torch.testing.assert_close(found.rcam, normalise_cam(total, labels), rtol=0, atol=1e-5)


def test_without_refinement_rcam_is_cam(net: CamNet) -> None:
    labeller = Labeller(net, scales=(1.0,), refine=RefineOptions("none", "fused"))
    out = labeller(picture(40, 40), torch.ones(1, 3))
    assert torch.equal(out.cam, out.rcam) and not labeller.refined and not labeller.refined_once
    heads_only = Labeller(net, scales=(1.0,), refine=RefineOptions("learnt", "scale"))
    assert not heads_only.refined


def test_scales_of_a_side_bring_every_image_to_the_same_size(net: CamNet) -> None:
    views = torch.zeros(1, 3, 30, 60)
    assert scaled_views(views, 1.5, False, side=40).shape == (1, 3, 30, 60)
    assert scaled_views(views, 0.75, True, side=40).shape == (2, 3, 15, 30)
    assert scaled_views(views.transpose(2, 3), 2.0, False, side=40).shape == (1, 3, 80, 40)
    assert scaled_views(torch.zeros(1, 3, 1, 500), 1.0, False, side=40).shape == (1, 3, 1, 40)
    # An image of half the size, and the same enlarged: both are seen at the same sizes, so the maps are alike.
    labels, image = torch.tensor([[1.0, 0, 1]]), picture(40, 64)
    large = picture(80, 128)
    with torch.no_grad():
        small_maps, large_maps = (
            Labeller(net, scales=(0.75, 1.5), refine=RAW, side=64)(i, labels).rcam for i in (image, large)
        )
    shrunk = F.interpolate(large_maps, size=(40, 64), mode="area")
    assert (shrunk - small_maps).abs().mean() < 0.03
    with torch.no_grad():
        of_image = Labeller(net, scales=(0.75, 1.5), refine=RAW)(large, labels).rcam
    assert (F.interpolate(of_image, size=(40, 64), mode="area") - small_maps).abs().mean() > 0.06


@pytest.mark.parametrize(
    ("length", "long_side", "target", "expected"), [(375, 500, 347, 260), (1, 9, 4, 1), (5, 5, 7, 7)]
)
def test_fitted_sizes_round_half_up(length: int, long_side: int, target: int, expected: int) -> None:
    assert fitted_size(length, long_side, target) == expected
    assert expected == max(1, math.floor(length * target / long_side + 0.5))
