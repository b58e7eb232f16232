"""The teacher: its average in closed form, labels against plain steps, and the step that it teaches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from cpn_fast.config.training import MethodOptions
from cpn_fast.methods.cam import CamMethod
from cpn_fast.methods.cpn import CpnMethod
from cpn_fast.methods.teacher import Teacher, confident_labels
from cpn_fast.models.backbones import Backbone, create_backbone
from cpn_fast.models.cam import CamNet
from cpn_kernels.ops.cp_triplet import normalise_images
from tests.mini_backbone import Mini

CLASSES = 3
LABELS = torch.tensor([[1.0, 0, 1], [0, 1, 0]])


def network(refinement: str = "none") -> CamNet:
    return network_on(create_backbone("resnet38_tiny"), refinement)


def network_on(backbone: Backbone, refinement: str) -> CamNet:
    torch.manual_seed(0)
    net = CamNet(backbone, CLASSES, refinement, pixel_head=True)
    assert net.pixels is not None
    torch.nn.init.normal_(net.pixels.weight, std=0.1)
    return net


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 64, 80, 3), generator=generator, dtype=torch.uint8)
    patches = (torch.arange(64 * 80).reshape(1, 64, 80) // 256).int().repeat(2, 1, 1)
    return images, patches, torch.tensor([3, 4])


def test_the_average_in_closed_form() -> None:
    net = network()
    teacher = Teacher(net, MethodOptions(teacher=0.9))
    begin = net.classifier.weight.detach().clone()
    for step in (1, 2, 3):
        with torch.no_grad():
            net.classifier.weight.copy_(begin + step)
        net.mean.fill_(step / 10)
        teacher.follow(net)
    moved = 0.1 * (1 * 0.9**2 + 2 * 0.9 + 3)
    torch.testing.assert_close(teacher.net.classifier.weight, begin + moved)
    torch.testing.assert_close(teacher.net.mean, torch.full((3,), 0.3))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.train().net.dropout.training


def test_confident_labels_by_hand() -> None:
    maps = torch.tensor([[[[0.9, 0.2, 0.4, 0.55]], [[0.1, 0.29, 0.56, 0.3]]]])
    assert confident_labels(maps, 0.3, 0.55).tolist() == [[[1, 0, 2, 255]]]


def by_hand(net: CamNet, views: torch.Tensor, labels: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The labels with PCM as a matrix product in float64, image by image."""
    net = copy.deepcopy(net).eval().double()
    views, labels = views.double(), labels.double()
    images = len(labels)
    found = []
    for n in range(images):
        mid, high_stage, final = net.backbone(views[n : n + 1])
        cam = F.conv2d(final, net.classifier.weight).clamp(min=0)[0]
        size = cam.shape[1:]
        for view in range(1, len(views) // images):
            part = views[view * images + n][None]
            shown = (part != 0).any(1, keepdim=True).double()
            share = F.interpolate(shown, size=size, mode="bilinear", antialias=True)
            cam = cam + F.conv2d(net.backbone(part)[2], net.classifier.weight).clamp(min=0)[0] * share[0]
        features = []
        for stage in (mid, high_stage):
            normed = F.layer_norm(stage[0].flatten(1).T, (stage.shape[1],), eps=1e-5).T.reshape(stage[0].shape)
            features.append(F.interpolate(normed[None], size=size, mode="bilinear", align_corners=True)[0].flatten(1))
        x = torch.cat(features)
        x = F.normalize(x - x.mean(1, keepdim=True), dim=0)
        maps = normed_by_peak(cam.flatten(1), labels[n])
        maps = torch.cat([1 - maps.amax(0, keepdim=True), maps])
        best = maps[1:].amax(0)
        maps[1:] *= (maps[1:] == best) & (best > 0)
        affinity = (x.T @ x).clamp(min=0)
        refined = maps @ affinity / (affinity.sum(0) + 1e-5)
        score = normed_by_peak(refined[1:], labels[n]).reshape(1, -1, *size)
        full = F.interpolate(score, size=views.shape[2:], mode="bilinear", align_corners=False)[0]
        peak, winner = full.max(0)
        answer = torch.full(peak.shape, 255)
        answer[peak < low] = 0
        answer[peak > high] = winner[peak > high] + 1
        answer[((peak - low).abs() < 1e-4) | ((peak - high).abs() < 1e-4)] = -1  # float32 may fall on either side
        found.append(answer)
    return torch.stack(found)


def normed_by_peak(maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    low, peak = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    normed = (maps - low - 1e-5).clamp(min=0) / (peak - low + 1e-5)
    return torch.where(peak < 1e-2, 0.0, normed) * labels[:, None]


@pytest.mark.parametrize("pairs", [False, True])
def test_labels_against_plain_steps(pairs: bool) -> None:
    net = network()
    with torch.no_grad():
        net.classifier.weight.mul_(30)
    images, _, _ = batch()
    views = normalise_images(images, net.mean)
    if pairs:
        shown = (torch.rand(2, 1, 64, 80, generator=torch.Generator().manual_seed(2)) < 0.5).float()
        views = torch.cat([views, views * shown, views * (1 - shown)])
    found = Teacher(net, MethodOptions(teacher=0.9)).labels(views, LABELS)
    expected = by_hand(net, views, LABELS, 0.3, 0.55)
    certain = expected >= 0
    assert certain.float().mean() > 0.99 and len(expected.unique()) >= 4
    assert torch.equal(found.long()[certain], expected[certain])


@pytest.mark.parametrize("method", [CamMethod, CpnMethod])
def test_a_step_learns_what_the_teacher_labels(method) -> None:
    net = network("none" if method is CamMethod else "pcm")
    options = MethodOptions(teacher=0.5, dropout=0.0, teacher_pairs=False)
    images, patches, keys = batch()
    module = method(net, options)
    with torch.no_grad():
        net.classifier.weight.mul_(2)  # the teacher follows by half before it labels
    apart = Teacher(net, options)
    with torch.no_grad():
        apart.net.classifier.weight.mul_(0.75)
    wanted = apart.labels(normalise_images(images, net.mean), LABELS)
    net.eval()  # without the backbone's dropout
    taught = module(images, patches, keys, LABELS)
    plain = method(net, MethodOptions(dropout=0.0))(images, patches, keys, LABELS, targets=wanted)
    assert taught["pixels"] > 0
    torch.testing.assert_close(taught["loss"], plain["loss"])
    weights = [p for p in net.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(taught["loss"], weights, allow_unused=True),
        torch.autograd.grad(plain["loss"], weights, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs)


def test_in_the_warm_up_it_follows_and_teaches_nothing() -> None:
    for method, refinement in ((CamMethod, "none"), (CpnMethod, "pcm")):
        net = network(refinement)
        module = method(net, MethodOptions(teacher=0.5))
        with torch.no_grad():
            net.classifier.weight.add_(1)
        assert "pixels" not in module(*batch(), LABELS, warm_up=True)
        torch.testing.assert_close(module.teacher.net.classifier.weight, net.classifier.weight - 0.5)


@pytest.mark.parametrize("method", [CamMethod, CpnMethod])
def test_it_is_part_of_one_graph(method) -> None:
    """`--compile` takes the whole step; the graph, run by the eager backend, follows and labels alike."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(2)
        net = network_on(Mini(), "none" if method is CamMethod else "pcm")  # what is traced twice is the teacher's
        module = method(net, MethodOptions(teacher=0.5, dropout=0.0))
        net.eval()
        with torch.no_grad():
            net.classifier.weight.mul_(2)
        step = torch.compile(module, fullgraph=True, backend="eager") if compiled else module
        results.append((step(*batch(), LABELS)["loss"].detach(), module.teacher.net.classifier.weight.clone()))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(eager, graph)
