"""Pixel labels: the loss against a loop in float64, its gradient, and the step that teaches all three views."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cpn_fast.config.training import MethodOptions
from cpn_fast.methods.cam import CamMethod
from cpn_fast.methods.cpn import CpnMethod
from cpn_fast.methods.pixels import pixel_label_loss, shown_pixels
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.cam import CamNet

CLASSES = 3


def sample(views: int = 3, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(views * batch, CLASSES + 1, 2, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 255])[torch.randint(0, 5, (batch, 5, 7), generator=generator)].to(torch.uint8)
    shown = torch.rand(views * batch, 5, 7, generator=generator) < 0.5
    shown[:batch] = True
    return logits, targets, shown


def loop_loss(
    logits: torch.Tensor, targets: torch.Tensor, shown: torch.Tensor, present: torch.Tensor | None = None
) -> float:
    batch = len(targets)
    full = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
    total = 0.0
    for image in range(batch):
        views = []
        for view in range(len(logits) // batch):
            row, terms = view * batch + image, []
            for y, x in itertools.product(range(targets.shape[1]), range(targets.shape[2])):
                wanted = int(targets[image, y, x])
                competing = range(CLASSES + 1) if present is None else present[image].nonzero().flatten().tolist()
                if wanted in competing and shown[row, y, x]:
                    values = full[row, :, y, x].tolist()
                    terms.append(math.log(sum(math.exp(values[c]) for c in competing)) - values[wanted])
            if terms:
                views.append(sum(terms) / len(terms))
        total += sum(views) / len(views) if views else 0.0
    return total / batch


def test_loss_against_a_loop() -> None:
    logits, targets, shown = sample()
    assert pixel_label_loss(logits, targets, shown).item() == pytest.approx(
        loop_loss(logits, targets, shown), rel=1e-12
    )
    shown[2] = False  # a view that shows nothing counts for nothing
    assert pixel_label_loss(logits, targets, shown).item() == pytest.approx(
        loop_loss(logits, targets, shown), rel=1e-12
    )
    in_single = pixel_label_loss(logits.float(), targets, shown)
    assert in_single.dtype == torch.float32
    assert in_single.item() == pytest.approx(loop_loss(logits, targets, shown), rel=1e-5)


def test_only_the_classes_of_an_image_compete() -> None:
    logits, targets, shown = sample()
    present = torch.tensor([[True, True, False, False], [True, False, True, True]])
    found = pixel_label_loss(logits.requires_grad_(), targets, shown, present)
    assert found.item() == pytest.approx(loop_loss(logits.detach(), targets, shown, present), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all()
    assert torch.equal(gradient.abs().sum(dim=(2, 3)) > 0, present.repeat(3, 1))
    assert torch.autograd.gradcheck(lambda x: pixel_label_loss(x, targets, shown, present), logits)


def test_gradient() -> None:
    logits, targets, shown = sample()
    assert torch.autograd.gradcheck(lambda x: pixel_label_loss(x, targets, shown), logits.requires_grad_())


def test_void_and_hidden_pixels_teach_nothing() -> None:
    logits, targets, shown = sample(views=1)
    logits.requires_grad_()
    nothing = pixel_label_loss(logits, torch.full_like(targets, 255), shown)
    hidden = pixel_label_loss(logits, targets, torch.zeros_like(shown))
    (gradient,) = torch.autograd.grad(nothing + hidden, logits)
    assert nothing.item() == hidden.item() == 0 and not gradient.any()


def test_hidden_pixels_and_padding_are_not_shown() -> None:
    views = torch.ones(1, 3, 2, 2)
    views[0, :, 0, 1] = 0
    views[0, :2, 1, 1] = 0  # one channel is still there
    assert shown_pixels(views).tolist() == [[[True, False], [True, True]]]


@pytest.mark.parametrize(("method", "taught"), [(CamMethod, 1), (CpnMethod, 3)])
def test_a_step_teaches_the_pixel_head_and_the_backbone(method, taught, monkeypatch) -> None:
    import cpn_fast.methods.common as common_module
    import cpn_fast.methods.cpn as cpn_module

    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), CLASSES, "none" if method is CamMethod else "pcm", pixel_head=True)
    module = method(net, MethodOptions(pixel_weight=0.5, tcp=False, cpcr=False, dropout=0.0))
    seen = []

    def spy(logits, targets, shown, present):
        seen.append((len(logits), shown.float().mean().item(), present.tolist()))
        return pixel_label_loss(logits, targets, shown, present)

    for place in (common_module, cpn_module):
        monkeypatch.setattr(place, "pixel_label_loss", spy)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 32, 40, 3), generator=generator, dtype=torch.uint8)
    patches = (torch.arange(32 * 40).reshape(1, 32, 40) // 64).int().repeat(2, 1, 1)
    targets = torch.randint(0, CLASSES + 1, (2, 32, 40), generator=generator, dtype=torch.uint8)
    labels, keys = torch.tensor([[1.0, 0, 1], [0, 1, 0]]), torch.tensor([3, 4])
    out = module(images, patches, keys, labels, targets=targets)
    torch.testing.assert_close(out["loss"].detach(), out["cls"] + 0.5 * out["pixels"])
    assert seen[0][0] == 2 * taught
    assert seen[0][2] == [[True, True, False, True], [True, False, True, False]]
    assert seen[0][1] == pytest.approx(1 if taught == 1 else 2 / 3, abs=0.02)  # the pair shows each pixel once
    out["pixels"].requires_grad_(False)
    out["loss"].backward()
    assert net.pixels is not None and net.pixels.weight.grad is not None and net.pixels.weight.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in net.backbone.parameters())
    without = module(images, patches, keys, labels)
    assert "pixels" not in without


def test_labelling_takes_the_heads_maps_and_a_half_is_the_argmax() -> None:
    from cpn_fast.config.refine import RefineOptions
    from cpn_fast.models.labeller import Labeller
    from cpn_kernels.ops.cp_triplet import normalise_images

    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), CLASSES, "none", pixel_head=True).eval()
    assert net.pixels is not None
    torch.nn.init.normal_(net.pixels.weight)
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 40, 56, 3), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([[1.0, 0, 1]])
    with torch.no_grad():
        refine = RefineOptions("pixels", "fused")
        found = Labeller(net, scales=(1.0,), flip=False, beta=0.5, refine=refine)(image, labels)
        logits = net(normalise_images(image, net.mean)).pixels
        full = F.interpolate(logits, size=(40, 56), mode="bilinear", align_corners=False)
        full[:, 2] = -1e9  # absent
        part = Labeller(net, scales=(0.5, 1.0), refine=refine)
        every = part.scale_maps(image, labels).fused()
        present = part.scale_maps(image, labels, present_only=True).fused()
    assert torch.equal(found.mask.long(), full.argmax(dim=1))
    assert found.mask.any() and not found.rcam[:, 1].any()
    shares = full.softmax(dim=1)
    best = torch.maximum(shares[:, 1], shares[:, 3])
    torch.testing.assert_close(found.rcam[:, 0], shares[:, 1] / (best + shares[:, 0]))
    torch.testing.assert_close(present, every[:, [0, 2]])


def test_the_heads_shares_are_spread_over_pixels_that_look_alike() -> None:
    """Against the N x N matrix of affinities in float64."""
    from cpn_fast.config.refine import PIXELS
    from cpn_fast.models.labeller import Labeller, normalise_images

    torch.manual_seed(0)
    net = CamNet(create_backbone("resnet38_tiny"), CLASSES, "none", pixel_head=True).eval()
    assert net.pixels is not None
    torch.nn.init.normal_(net.pixels.weight)
    image = torch.randint(0, 256, (1, 48, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    labels = torch.tensor([[1.0, 0, 1]])
    labeller = Labeller(net, scales=(1.0, 0.5), beta=0.5, refine=PIXELS)
    with torch.no_grad():
        found = labeller(image, labels)
        present = labeller.scale_maps(image, labels, present_only=True).fused()
        views = normalise_images(image, net.mean)
        whole, mirrored = (net(view, raw=True) for view in (views, views.flip(3)))
        halved = F.interpolate(views, scale_factor=0.5, mode="bilinear")
        half, half_mirrored = (net(view) for view in (halved, halved.flip(3)))
    grid = whole.pixels.shape[2:]
    logits = whole.pixels + mirrored.pixels.flip(3)
    for small in (half.pixels, half_mirrored.pixels.flip(3)):
        logits = logits + F.interpolate(small, size=grid, mode="bilinear")
    shares = np.delete((logits / 4)[0].double().numpy(), 2, axis=0)  # class 2 is not in the image
    shares = np.exp(shares) / np.exp(shares).sum(axis=0)
    features = ((whole.features + mirrored.features.flip(3)) / 2)[0].double().flatten(1).numpy()
    features = features - features.mean(axis=1, keepdims=True)
    alike = features.T @ features / np.linalg.norm(features, axis=0)[:, None] / np.linalg.norm(features, axis=0)
    affinity = np.maximum(alike, 0) ** 2
    spread = shares.reshape(3, -1) @ (affinity / affinity.sum(axis=1, keepdims=True)).T
    full = F.interpolate(torch.from_numpy(spread.reshape(1, 3, *grid)), size=(48, 64), mode="bilinear")[0]
    expected = (full[1:] / (full[1:].amax(dim=0) + full[0])).float()
    torch.testing.assert_close(found.rcam[0, [0, 2]], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(present, found.rcam[:, [0, 2]])
    assert not found.rcam[:, 1].any()
    assert (found.mask[0].long() == torch.tensor([0, 1, 3])[full.argmax(dim=0)]).double().mean() > 0.999
