"""Gradients of the complementary-pair losses: where they flow, where none may, and what the pair teaches the image."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss, reference

spec = importlib.util.spec_from_file_location("cp_loss_oracle", Path(__file__).with_name("cp_loss_oracle.py"))
assert spec is not None and spec.loader is not None
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)
LABELS, VISIBLE, raw_maps = oracle.LABELS, oracle.VISIBLE, oracle.raw_maps
PAIR = CpLossOptions(tcp_target="pair")

# Gradients. A target is a constant, so each check moves only what the loss may learn from.


def test_cam_learns_from_the_full_image_in_the_first_term_alone() -> None:
    cam, rcam = raw_maps(0).requires_grad_(), raw_maps(1)
    tcp, cpcr = cp_loss(cam, rcam, LABELS, VISIBLE, PAIR)
    assert not cpcr.requires_grad
    gradient = torch.autograd.grad(tcp, cam)[0]
    assert (gradient[3:] == 0).all()
    absent = torch.cat([LABELS] * 3) == 0
    assert (gradient[absent] == 0).all()
    assert (gradient[0, 2] == 0).all()  # the weak channel
    assert (gradient[1, 1] != 0).any()
    rcam, small = raw_maps(1, 3, 3), raw_maps(0, 3, 3)
    full, pair = small[:3].requires_grad_(), small[3:]
    assert torch.autograd.gradcheck(lambda o: cp_loss(torch.cat([o, pair]), rcam, LABELS, VISIBLE, PAIR)[0], full)


def test_cam_learns_from_the_pair_where_the_full_image_is_the_target() -> None:
    cam, rcam = raw_maps(0).requires_grad_(), raw_maps(1)
    tcp, cpcr = cp_loss(cam, rcam, LABELS, VISIBLE)
    assert not cpcr.requires_grad
    assert tcp.item() == pytest.approx(cp_loss(cam, rcam, LABELS, VISIBLE, PAIR)[0].item(), abs=1e-12)
    gradient = torch.autograd.grad(tcp, cam)[0]
    assert (gradient[:3] == 0).all() and (gradient[3:] != 0).any()
    rcam, small = raw_maps(1, 3, 3), raw_maps(0, 3, 3)
    full, pair = small[:3], small[3:].requires_grad_()
    assert torch.autograd.gradcheck(lambda p: cp_loss(torch.cat([full, p]), rcam, LABELS, VISIBLE)[0], pair)


def test_rcam_gradient_of_the_second_triplet_term() -> None:
    cam, rcam = raw_maps(0), raw_maps(1).requires_grad_()
    gradient = torch.autograd.grad(cp_loss(cam, rcam, LABELS, VISIBLE, PAIR)[0], rcam)[0]
    assert (gradient[3:] == 0).all() and (gradient[1, 1] != 0).any()
    cam, small = raw_maps(0, 3, 3), raw_maps(1, 3, 3)
    full, pair = small[:3].requires_grad_(), small[3:]
    assert torch.autograd.gradcheck(lambda o: cp_loss(cam, torch.cat([o, pair]), LABELS, VISIBLE, PAIR)[0], full)
    assert torch.autograd.gradcheck(
        lambda r: cp_loss(cam, r, LABELS, VISIBLE, CpLossOptions(refined_pair_gradient=True))[0],
        raw_maps(1, 3, 3).requires_grad_(),
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"cpcr_target": "dense", "map_norm": "max"}, {"cpcr_target": "released", "ohem_pool": "all"}, {"ohem": 1.0}],
    ids=str,
)
def test_rcam_gradient_of_the_cross_term(options: dict) -> None:
    cam, rcam = raw_maps(0, 3, 3), raw_maps(1, 3, 3).requires_grad_()
    loss = cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(**options))[1]
    gradient = torch.autograd.grad(loss, rcam)[0]
    assert (gradient[:3] == 0).all()  # the refined full image is in neither term
    assert all((gradient[3 + i] != 0).any() for i in range(6))
    assert torch.autograd.gradcheck(lambda r: cp_loss(cam, r, LABELS, VISIBLE, CpLossOptions(**options))[1], rcam)


# The pair teaches the image.


@pytest.mark.parametrize("pair_norm", ["own", "shared", "image"])
@pytest.mark.parametrize("map_norm", ["minmax", "max"])
@pytest.mark.parametrize("visible", [(0.4, 0.75, 0.5), (0.0, 1.0, 0.5)], ids=["both views", "one view shows all"])
def test_union_of_the_pair_teaches_the_image(pair_norm: str, map_norm: str, visible: tuple[float, ...]) -> None:
    options = CpLossOptions(tcp_target="union", pair_norm=pair_norm, map_norm=map_norm)  # type: ignore[arg-type]
    cam, shown = raw_maps(0).requires_grad_(), torch.tensor(visible, dtype=torch.float64)
    loss = cp_loss(cam, None, LABELS, shown, options)[0]
    expected, _ = oracle.loop_union(cam, list(visible), map_norm, pair_norm)
    assert loss.item() == pytest.approx(expected, abs=1e-13)
    gradient = torch.autograd.grad(loss, cam)[0]
    assert (gradient[3:] == 0).all() and (gradient[:3] != 0).any()
    small = raw_maps(0, 3, 3)
    full, pair = small[:3].requires_grad_(), small[3:]
    if pair_norm == "own":  # else the target hangs on the full image's maximum, which is a constant there
        assert torch.autograd.gradcheck(lambda o: cp_loss(torch.cat([o, pair]), None, LABELS, shown, options)[0], full)


def test_on_the_scale_of_the_image_no_gradient_goes_through_a_peak() -> None:
    # Max norm: Y_o = A_o / (m + eps), m a constant, so dL/dA_o = sign / (m + eps) / elements at each position alone.
    options = CpLossOptions(tcp_target="union", pair_norm="image", map_norm="max")
    cam = raw_maps(0).requires_grad_()
    gradient = torch.autograd.grad(cp_loss(cam, None, LABELS, VISIBLE, options)[0], cam)[0][:3]
    _, signs = oracle.loop_union(cam, VISIBLE.tolist(), "max", "image")
    full = cam.detach()[:3]
    peak = full.clamp(min=0).amax(dim=(2, 3), keepdim=True)
    kept = (LABELS > 0)[:, :, None, None] & (peak >= 1e-2) & (full > 0)
    expected = torch.from_numpy(signs) / (peak + 1e-5) / full.numel()
    torch.testing.assert_close(gradient, torch.where(kept, expected, 0.0), rtol=1e-12, atol=0)


def test_a_loss_on_the_scale_of_the_image_does_not_reward_shrinking_to_the_peak() -> None:
    """The full map is broader than the pair: with its own peak it may lower the rest by raising the peak."""
    full = torch.tensor([[[[2.0, 1.0, 1.0, 1.0]]]], dtype=torch.float64)
    pair = torch.tensor([[[[2.0, 0.5, 0.5, 0.5]]]], dtype=torch.float64)
    cam = torch.cat([full, pair, pair]).requires_grad_()
    labels, visible = torch.ones(1, 1), torch.tensor([0.5], dtype=torch.float64)
    pulls = {}
    for norm in ("own", "image"):
        options = CpLossOptions(tcp_target="pair", pair_norm=norm, map_norm="max")  # type: ignore[arg-type]
        pulls[norm] = torch.autograd.grad(cp_loss(cam, None, labels, visible, options)[0], cam)[0][0, 0, 0, 0].item()
    assert pulls["own"] < -0.1  # descent lifts the peak
    assert pulls["image"] == 0


def test_options_without_a_kernel_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpn_kernels.ops.cp_loss.use_triton", lambda *_: True)
    monkeypatch.setattr("cpn_kernels.ops.cp_loss.cp_loss_op", lambda *_: pytest.fail("the kernel was called"))
    cam, rcam = raw_maps(0), raw_maps(1)
    for options in (CpLossOptions(tcp_target="union"), CpLossOptions(pair_norm="image")):
        assert not options.has_kernel
        found = cp_loss(cam, rcam, LABELS, VISIBLE, options)
        assert found == reference.cp_loss(cam, rcam, LABELS, VISIBLE, options, None)
    assert CpLossOptions(tcp_target="pair", pair_norm="shared").has_kernel


def test_shared_norm_takes_the_full_maximum_as_a_constant() -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    rcam[:3] += 3  # the full image's maximum rules
    rcam.requires_grad_()
    loss = cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(pair_norm="shared", refined_pair_gradient=True))[1]
    assert (torch.autograd.grad(loss, rcam)[0][:3] == 0).all()
