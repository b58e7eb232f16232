"""CamNet: shapes, the triplet as one batch, and where gradients must and must not flow."""

import numpy as np
import pytest
import torch

from cpn_fast.config.training import MethodOptions, TrainConfig
from cpn_fast.models import CamNet, create_model
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.build import refinement_of
from cpn_kernels.cam_norm import normalise_cam, winner_mask, with_background


@pytest.fixture
def net() -> CamNet:
    torch.manual_seed(0)
    return CamNet(create_backbone("resnet38_tiny"), 4, "prcm", dropout=0.0)


def images(batch: int, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_shapes_and_scores_are_the_mean_of_the_maps(net):
    net.eval()
    out = net(images(2, 40))
    assert out.cam.shape == (2, 4, 5, 5)
    assert out.features.shape == (2, 195, 5, 5)
    torch.testing.assert_close(out.scores, out.cam.mean(dim=(2, 3)))


def test_the_first_three_feature_channels_are_the_view_itself(net):
    net.eval()
    view = images(1, 33)
    features = net(view).features
    torch.testing.assert_close(features[0, :3, 0, 0], view[0, :, 0, 0])
    torch.testing.assert_close(features[0, :3, -1, -1], view[0, :, -1, -1])


def test_one_batch_of_three_equals_three_passes(net):
    net = net.double().eval()  # in float32, batches of other sizes round differently on some processors
    views = images(3).double()
    together = net(views)
    for index in range(3):
        alone = net(views[index : index + 1])
        torch.testing.assert_close(together.cam[index : index + 1], alone.cam, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.features[index : index + 1], alone.features, rtol=1e-9, atol=1e-9)


def test_refinement_gives_gradient_to_its_heads_and_none_to_backbone_or_classifier(net):
    net.train()
    out = net(images(2))
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    net.refine(out.cam, out.features, labels).square().sum().backward()
    for name in ("f_mid", "f_high", "f9", "phi"):
        assert getattr(net, name).weight.grad.abs().sum() > 0, name
    assert net.classifier.weight.grad is None
    assert all(p.grad is None for p in net.backbone.parameters())


def test_refined_maps_of_absent_classes_are_exactly_zero(net):
    net.eval()
    out = net(images(2))
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    refined = net.refine(out.cam, out.features, labels)
    assert torch.count_nonzero(refined[labels == 0]) == 0
    assert torch.isfinite(refined).all()


def test_all_zero_maps_refine_to_zero(net):
    net.eval()
    out = net(images(1))
    refined = net.refine(torch.zeros_like(out.cam), out.features, torch.ones(1, 4))
    assert torch.count_nonzero(refined) == 0


def test_the_correlation_affinity_is_the_cosine_of_embeddings_centred_over_the_image():
    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), 4, "pcm", affinity="correlation").eval()
    out, labels = net(images(1)), torch.tensor([[1.0, 0, 1, 0]])
    cam = torch.rand(out.cam.shape)
    found = net.refine(cam, out.features, labels)[0].flatten(1).detach().numpy()

    maps = with_background(normalise_cam(cam, labels))
    winners = (maps * winner_mask(maps))[0].flatten(1).detach().double().numpy()
    embedding = net.f9(out.features)[0].flatten(1).detach().double().numpy()
    embedding -= embedding.mean(axis=1, keepdims=True)
    unit = embedding / np.linalg.norm(embedding, axis=0)
    affinity = np.maximum(unit.T @ unit, 0)
    expected = winners @ affinity / (affinity.sum(axis=0) + 1e-5)
    np.testing.assert_allclose(found, expected[1:], atol=1e-5)

    net.affinity = "cosine"
    plain = net.refine(cam, out.features, labels)[0].flatten(1).detach().numpy()
    assert np.abs(plain - found).max() > 1e-2


def test_all_classes_compete_and_labels_are_applied_to_the_result():
    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), 3, "pcm", affinity="cosine", winner_classes="all").eval()
    out, labels = net(images(1)), torch.tensor([[1.0, 0, 1]])
    cam = torch.rand(out.cam.shape)
    found = net.refine_with_background(cam, out.features, labels)[0].flatten(1).detach()

    maps = with_background(normalise_cam(cam, torch.ones(1, 3)))[0].flatten(1)
    best = maps[1:].argmax(dim=0)
    winners = torch.stack([maps[0], *(maps[1 + c] * (best == c) for c in range(3))])
    unit = torch.nn.functional.normalize(net.f9(out.features)[0].flatten(1), dim=0)
    affinity = (unit.T @ unit).relu()
    expected = winners @ affinity / (affinity.sum(dim=0) + 1e-5)
    expected[2] = 0
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(net.refine(cam, out.features, labels)[0].flatten(1), found[1:])

    net.winner_classes = "present"
    assert (net.refine_with_background(cam, out.features, labels)[0].flatten(1) - found).abs().max() > 1e-2


def test_scores_can_be_means_of_the_enlarged_maps():
    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), 3, "none", score_resolution="input").eval()
    out, view = net(images(2)), images(2)
    for image, channel in ((0, 0), (1, 2)):
        grid = out.cam[image, channel].detach().double().numpy()
        rows, columns = (np.linspace(0, n - 1, size) for n, size in zip(grid.shape, view.shape[2:], strict=True))
        tall = np.array([np.interp(rows, np.arange(len(grid)), column) for column in grid.T])
        full = np.array([np.interp(columns, np.arange(grid.shape[1]), row) for row in tall.T])
        assert full.shape == tuple(view.shape[2:])
        assert out.scores[image, channel].item() == pytest.approx(full.mean(), rel=1e-4)
    assert (out.scores - out.cam.mean(dim=(2, 3))).abs().max() > 1e-4


def test_phi_starts_as_a_copy_of_f9(net):
    assert torch.equal(net.phi.weight, net.f9.weight.flatten(1))


def test_a_network_without_heads_says_so():
    net = CamNet(create_backbone("resnet38_tiny"), 2, "none")
    out = net(images(1))
    with pytest.raises(RuntimeError, match="no refinement heads"):
        net.refine(out.cam, out.features, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("cam", {}, "none"),
        ("seam", {}, "pcm"),
        ("seam_prcm", {}, "prcm"),
        ("cpn", {}, "pcm"),
        ("cpn", {"prcm": "softmax"}, "prcm"),
        ("seam_prcm", {"prcm": "released"}, "prcm_released"),
        ("cpn", {"prcm": "released"}, "prcm_released"),
        ("cpn", {"pcm": False}, "none"),
    ],
)
def test_each_method_gets_its_refinement(tmp_path, method, options, expected):
    config = TrainConfig(
        data="demo:", output=tmp_path, method=method, backbone="resnet38_tiny", options=MethodOptions(**options)
    )
    assert refinement_of(config) == expected
    assert create_model(config, 3).refinement == expected
