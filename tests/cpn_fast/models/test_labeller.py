"""The labelling module: sizes, flips, standing-in labels, and one pass that gives every scale."""

import numpy as np
import pytest
import torch
from PIL import Image

from cpn_fast.models import CamNet
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.labeller import Labeller, bicubic_images, mask_of, scaled_size, standing_labels
from cpn_kernels.ops.cp_triplet import normalise_images


@pytest.fixture(scope="module")
def net() -> CamNet:
    torch.manual_seed(0)
    return CamNet(create_backbone("resnet38_tiny"), 3, "prcm").eval()


def image(height: int, width: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("length", "scale", "expected"), [(375, 0.5, 188), (375, 1.5, 563), (33, 0.5, 17), (500, 2.0, 1000), (7, 1.0, 7)]
)
def test_scaled_sizes_round_half_up(length, scale, expected):
    assert scaled_size(length, scale) == expected == int(np.floor(length * scale + 0.5))


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_bicubic_scales_are_those_of_pillow(scale):
    picture = image(5, 7).permute(0, 3, 1, 2).float()
    smooth = torch.nn.functional.interpolate(picture, size=(45, 70), mode="bilinear").to(torch.uint8)
    pixels = smooth[0].permute(1, 2, 0).contiguous()
    height, width = scaled_size(45, scale), scaled_size(70, scale)
    found = bicubic_images(pixels[None], (height, width))[0].numpy()
    expected = np.asarray(Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.abs(found.astype(int) - expected).mean() < 0.3


def test_a_labeller_with_bicubic_scales_takes_them(net, monkeypatch):
    seen = []
    labeller = Labeller(net, scales=(0.5, 1.0), flip=True, resize="bicubic")
    monkeypatch.setattr(net, "forward", lambda views, raw: seen.append(views) or CamNet.forward(net, views, raw))
    pictures = image(40, 56, 2)
    labeller(pictures, torch.ones(2, 3))
    small = normalise_images(bicubic_images(pictures, (20, 28)), net.mean)
    assert torch.equal(seen[0], torch.cat([small, small.flip(3)]))
    assert seen[1].shape == (4, 3, 40, 56)


def test_labels_that_stand_in_are_those_above_the_threshold_and_at_least_the_best():
    scores = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.3, 0.2]])
    assert standing_labels(scores, 0.5).tolist() == [[1, 1, 0], [0, 1, 0]]


def test_mask_is_the_argmax_with_a_constant_background():
    maps = torch.tensor([[[[0.1, 0.4, 0.25]], [[0.3, 0.2, 0.25]]]])
    # a tie with the background goes to the background, the first index
    assert mask_of(maps, 0.25).tolist() == [[[2, 1, 0]]]


def test_outputs_have_the_image_size_and_absent_classes_are_zero(net):
    out = Labeller(net)(image(45, 70, 2), torch.tensor([[1.0, 0, 0], [0, 1, 1]]))
    assert out.rcam.shape == out.cam.shape == (2, 3, 45, 70)
    assert out.mask.shape == (2, 45, 70)
    assert out.mask.dtype == torch.uint8
    assert torch.count_nonzero(out.rcam[0, 1:]) == 0
    assert out.rcam.min() >= 0
    assert out.rcam.max() < 1
    assert set(out.mask[0].unique().tolist()) <= {0, 1}


def test_with_flip_a_mirrored_image_gives_mirrored_maps(net):
    labels, picture = torch.tensor([[1.0, 1, 0]]), image(48, 64)
    labeller = Labeller(net)
    straight, mirrored = labeller(picture, labels), labeller(picture.flip(2), labels)
    torch.testing.assert_close(mirrored.rcam, straight.rcam.flip(3), rtol=1e-3, atol=1e-4)


def test_a_row_of_minus_one_uses_the_networks_own_scores(net):
    labeller, picture = Labeller(net, scales=(1.0,), flip=False), image(40, 40)
    free = labeller(picture, torch.full((1, 3), -1.0))
    given = labeller(picture, standing_labels(free.scores, labeller.threshold))
    assert torch.equal(free.mask, given.mask)
    assert torch.equal(free.rcam, given.rcam)


def test_scores_are_the_classifier_on_the_image_itself(net):
    picture = image(40, 56)
    found = Labeller(net, scales=(0.5, 1.0, 1.5), flip=False)(picture, torch.ones(1, 3)).scores
    with torch.no_grad():
        expected = torch.sigmoid(net(normalise_images(picture)).scores)
    torch.testing.assert_close(found, expected)


def test_scales_sum_to_the_multi_scale_map(net):
    from cpn_kernels.cam_norm import normalise_cam

    labels, picture = torch.tensor([[1.0, 0, 1]]), image(40, 56)
    with torch.no_grad():
        both = Labeller(net, scales=(0.5, 1.0))(picture, labels)
        maps = Labeller(net, scales=(0.5, 1.0)).scale_maps(picture, labels).scales
        total = sum(m.rcam for m in maps)
    torch.testing.assert_close(normalise_cam(total, labels), both.rcam)


def test_batched_images_equal_single_ones(net):
    labels, pictures = torch.tensor([[1.0, 0, 1], [0, 1, 0]]), image(40, 56, 2)
    labeller = Labeller(net)
    together = labeller(pictures, labels)
    for index in range(2):
        alone = labeller(pictures[index : index + 1], labels[index : index + 1])
        torch.testing.assert_close(together.rcam[index : index + 1], alone.rcam, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("winner_classes", ["present", "all"])
@pytest.mark.parametrize("refinement", ["pcm", "prcm", "prcm_released"])
def test_leaving_absent_classes_out_changes_no_map(refinement, winner_classes):
    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), 5, refinement, winner_classes=winner_classes)
    labeller = Labeller(net, scales=(1.0,), flip=False)
    labels, picture = torch.tensor([[0.0, 1, 0, 1, 0]]), image(40, 56)
    with torch.no_grad():
        labeller.net.classifier.weight.abs_()  # maps of an untrained network that are not all zero
        every = labeller.scale_maps(picture, labels).scales
        present = labeller.scale_maps(picture, labels, present_only=True).scales
        full, part = next(every).rcam, next(present).rcam
    assert full[:, [1, 3]].amax() > 0.1
    torch.testing.assert_close(part, full[:, [1, 3]], rtol=1e-4, atol=1e-5)
