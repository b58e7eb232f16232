"""The complementary-pair losses: by hand, against a float64 loop, against the released code, at the edges."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cpn_kernels.cam_norm import normalise_cam
from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss, ohem_mean, reference

spec = importlib.util.spec_from_file_location("cp_loss_oracle", Path(__file__).with_name("cp_loss_oracle.py"))
assert spec is not None and spec.loader is not None
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)
LABELS, VISIBLE, raw_maps = oracle.LABELS, oracle.VISIBLE, oracle.raw_maps


OPTIONS = [
    {"cpcr_target": target, "ohem": ohem, "ohem_pool": pool}
    for target in ("winner", "dense", "released")
    for ohem, pool in ((0.2, "present"), (0.2, "all"), (1.0, "present"), (1.0, "all"), (0.001, "present"))
] + [
    {"map_norm": "max"},
    {"pair_norm": "shared"},
    {"map_norm": "max", "pair_norm": "shared", "cpcr_target": "dense"},
    {"pair_norm": "image"},
    {"map_norm": "max", "pair_norm": "image", "cpcr_target": "dense"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_against_loop(options: dict) -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    ours = cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(**options))
    assert [float(x) for x in ours] == pytest.approx(oracle.loop_loss(cam, rcam, **options), abs=1e-13)


def test_hand_computed() -> None:
    # One image, one class, two pixels, max norm: Y = R / (1 + eps) with the peak at 1 everywhere.
    def triplet(*views: tuple[float, float]) -> Tensor:
        return torch.tensor(views, dtype=torch.float64).view(3, 1, 1, 2)

    cam = triplet((1.0, 0.6), (1.0, 0.0), (0.2, 1.0))
    rcam = triplet((1.0, 0.5), (1.0, 0.5), (0.5, 1.0))
    labels, visible = torch.ones(1, 1), torch.tensor([0.25], dtype=torch.float64)
    tcp, cpcr = cp_loss(cam, rcam, labels, visible, CpLossOptions(map_norm="max", ohem=1.0))
    # pair (.25 + .75 * .2, .75) = (.4, .75) against (1, .6); refined pair (.625, .875) against (1, .5)
    assert float(tcp) == pytest.approx((0.6 + 0.15) / 2 + (0.375 + 0.375) / 2, abs=1e-4)
    # Y_o with background: ((0, .4), (1, .6)).
    # First: Y_h ((0, 1), (1, 0)) times .25 leaves ((0, .15), (.75, .6));
    #        .75 * Yhat_hbar is ((.375, 0), (.375, .75))
    # Second: Y_hbar ((.8, 0), (.2, 1)) times .75 leaves ((-.6, .4), (.85, -.15)), clamped to [0, .25]:
    #         ((0, .25), (.25, 0)); .25 * Yhat_h is ((0, .125), (.25, .125))
    first = (0.375 + 0.15 + 0.375 + 0.15) / 4
    second = (0 + 0.125 + 0 + 0.125) / 4
    assert float(cpcr) == pytest.approx(first + second, abs=1e-4)


def test_full_view_gives_no_triplet_loss() -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    for maps in (cam, rcam):
        maps[3:6] = maps[:3]
    assert cp_loss(cam, rcam, LABELS, torch.ones(3, dtype=torch.float64))[0] == 0
    for maps in (cam, rcam):
        maps[6:], maps[3:6] = maps[:3].clone(), raw_maps(2)[3:6]
    assert cp_loss(cam, rcam, LABELS, torch.zeros(3, dtype=torch.float64))[0] == 0


def test_switches() -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    tcp, cpcr = cp_loss(cam, rcam, LABELS, VISIBLE)
    assert [float(x) for x in cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(tcp=False))] == [0.0, float(cpcr)]
    assert [float(x) for x in cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(cpcr=False))] == [float(tcp), 0.0]
    first = cp_loss(cam, None, LABELS, VISIBLE)
    assert 0 < float(first[0]) < float(tcp) and first[1] == 0
    second = cp_loss(rcam, None, LABELS, VISIBLE)[0]
    assert float(first[0] + second) == pytest.approx(float(tcp), abs=1e-14)


def test_images_count_equally() -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    whole = cp_loss(cam, rcam, LABELS, VISIBLE)
    parts = [
        cp_loss(cam[i::3], rcam[i::3], LABELS[i : i + 1], VISIBLE[i : i + 1])  # images are the inner axis of a triplet
        for i in range(3)
    ]
    for term in range(2):
        assert float(whole[term]) == pytest.approx(np.mean([float(p[term]) for p in parts]), abs=1e-14)


def test_input_resolution_upsamples_the_raw_maps() -> None:
    cam, rcam = raw_maps(0, 3, 3), raw_maps(1, 3, 3)

    def upsampled(maps: Tensor) -> Tensor:
        out = torch.zeros(*maps.shape[:2], 7, 5, dtype=maps.dtype)
        for y, x in itertools.product(range(7), range(5)):
            v, u = y * 2 / 6, x * 2 / 4  # corner on corner
            top, left = min(int(v), 1), min(int(u), 1)
            fy, fx = v - top, u - left
            out[:, :, y, x] = (
                maps[:, :, top, left] * (1 - fy) * (1 - fx)
                + maps[:, :, top, left + 1] * (1 - fy) * fx
                + maps[:, :, top + 1, left] * fy * (1 - fx)
                + maps[:, :, top + 1, left + 1] * fy * fx
            )
        return out

    ours = cp_loss(cam, rcam, LABELS, VISIBLE, size=(7, 5))
    assert [float(x) for x in ours] == pytest.approx(oracle.loop_loss(upsampled(cam), upsampled(rcam)), abs=1e-12)


# Degenerate maps.


@pytest.mark.parametrize("value", [0.0, -1.0, 2.0])
@pytest.mark.parametrize("target", ["winner", "dense", "released"])
def test_constant_maps_are_finite(value: float, target: str) -> None:
    cam = torch.full((9, 4, 3, 3), value, requires_grad=True)
    rcam = torch.full((9, 4, 3, 3), value, requires_grad=True)
    for map_norm in ("minmax", "max"):
        losses = cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(map_norm=map_norm, cpcr_target=target))
        gradients = torch.autograd.grad(sum(losses), (cam, rcam))
        assert all(torch.isfinite(x).all() for x in (*losses, *gradients))
        assert losses[0].abs() < 1e-6  # the pair adds up to the whole
        if value <= 0:
            assert all((x == 0).all() for x in gradients)
            if target != "released":
                assert losses[1].abs() < 1e-6  # background: 1 - lambda = lambda_bar


def test_no_class_present() -> None:
    cam, rcam = raw_maps(0).requires_grad_(), raw_maps(1).requires_grad_()
    losses = cp_loss(cam, rcam, torch.zeros_like(LABELS), VISIBLE)
    assert [x.item() for x in losses] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert all((x == 0).all() for x in torch.autograd.grad(sum(losses), (cam, rcam)))


# OHEM.


def test_ohem_by_hand() -> None:
    errors = torch.tensor([[[[0.1, 0.9]], [[0.5, 0.5]], [[0.7, 0.2]]], [[[1.0, 2.0]], [[9.0, 9.0]], [[3.0, 4.0]]]])
    pool = torch.tensor([[1, 1, 1], [1, 0, 1]])
    # Half of 6 elements: .9 .7 .5; half of 4: 4 3.
    assert float(ohem_mean(errors, pool, 0.5)) == pytest.approx((0.7 + 3.5) / 2)
    assert float(ohem_mean(errors, None, 0.5)) == pytest.approx((0.7 + 22 / 3) / 2)
    # A share of less than one element keeps one.
    assert float(ohem_mean(errors, pool, 0.1)) == pytest.approx((0.9 + 4.0) / 2)
    assert float(ohem_mean(errors, None, 0.1)) == pytest.approx((0.9 + 9.0) / 2)
    assert float(ohem_mean(errors, pool, 1.0)) == pytest.approx((2.9 / 6 + 2.5) / 2)
    assert float(ohem_mean(errors, None, 1.0)) == pytest.approx(float(errors.mean()))


@pytest.mark.parametrize("fraction", [0.2, 0.35, 0.5])
def test_ohem_is_the_mean_of_topk(fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    errors = torch.randint(0, 6, (8, 5, 7, 9), generator=generator).double()  # full of ties
    pool = torch.rand(8, 5, generator=generator) < 0.5
    pool[:, 0] = True
    expected = [
        torch.topk(one[kept].flatten(), max(1, math.floor(one[kept].numel() * fraction))).values.mean()
        for one, kept in zip(errors, pool, strict=True)
    ]
    torch.testing.assert_close(ohem_mean(errors, pool, fraction), torch.stack(expected).mean(), rtol=1e-14, atol=0)


def test_ohem_gradient_reaches_the_hardest_alone() -> None:
    errors = torch.tensor([[[[1.0, 4.0, 2.0, 3.0, 0.5]], [[9.0, 9.0, 9.0, 9.0, 9.0]]]], requires_grad=True)
    gradient = torch.autograd.grad(ohem_mean(errors, torch.tensor([[1, 0]]), 0.4), errors)[0]
    assert gradient.flatten().tolist() == [0, 0.5, 0, 0.5, 0, 0, 0, 0, 0, 0]


# The house's terms: float32 of half precision, one graph, clear errors.


def test_single_and_half_precision() -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    exact = cp_loss(cam, rcam, LABELS, VISIBLE)
    single = cp_loss(cam.float(), rcam.float(), LABELS, VISIBLE.float())
    half = cp_loss(cam.bfloat16(), rcam.bfloat16(), LABELS, VISIBLE.float())
    for a, b, c in zip(exact, single, half, strict=True):
        assert b.dtype == c.dtype == torch.float32
        assert float(b) == pytest.approx(float(a), rel=1e-5)
        assert float(c) == pytest.approx(float(a), rel=2e-2)


@pytest.mark.parametrize(
    ("options", "size"), [({}, None), ({"ohem_pool": "all", "cpcr_target": "released"}, (9, 9))], ids=str
)
def test_compiled_without_graph_breaks(options: dict, size: tuple[int, int] | None) -> None:
    chosen = CpLossOptions(**options)

    def loss(cam: Tensor, rcam: Tensor, labels: Tensor, visible: Tensor) -> Tensor:
        tcp, cpcr = cp_loss(cam, rcam, labels, visible, chosen, size=size)
        return tcp + cpcr

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    inputs = raw_maps(0).float().requires_grad_(), raw_maps(1).float().requires_grad_()
    ours, eager = (f(*inputs, LABELS, VISIBLE.float()) for f in (compiled, loss))
    torch.testing.assert_close(ours, eager)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(eager, inputs))


def test_nothing_is_read_on_the_host() -> None:
    # Meta tensors have no values: whatever looked at one would raise.
    cam, labels, visible = torch.empty(9, 4, 4, 5, device="meta"), torch.empty(3, 4, device="meta"), torch.empty(3)
    for options in OPTIONS:
        tcp, cpcr = cp_loss(cam, cam, labels, visible.to("meta"), CpLossOptions(**options))
        assert tcp.shape == cpcr.shape == () and cpcr.is_meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cam_triplet": torch.zeros(8, 4, 4, 5)}, r"cam_triplet is \(8, 4, 4, 5\); expected \[9, 4, h, w\]"),
        ({"rcam_triplet": torch.zeros(9, 4, 4, 4)}, r"rcam_triplet is \(9, 4, 4, 4\); expected \(9, 4, 4, 5\)"),
        ({"visible": torch.ones(2)}, r"visible is \(2,\); expected \[3\]"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {
        "cam_triplet": raw_maps(0),
        "rcam_triplet": raw_maps(1),
        "labels": LABELS,
        "visible": VISIBLE,
    }
    with pytest.raises(ValueError, match=message):
        cp_loss(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpcr_target": "soft"}, "cpcr_target is 'soft'; expected one of winner, dense, released"),
        ({"map_norm": "l2"}, "map_norm is 'l2'; expected one of minmax, max"),
        ({"tcp_target": "both"}, "tcp_target is 'both'"),
        ({"pair_norm": "both"}, "pair_norm is 'both'"),
        ({"ohem_pool": "none"}, "ohem_pool is 'none'"),
        ({"ohem": 0.0}, r"ohem is 0.0; expected a share in \(0, 1\]"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_bad_option_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CpLossOptions(**change)


# The authors' own code.

RELEASED = CpLossOptions(tcp_target="pair", cpcr_target="released", ohem_pool="all", refined_pair_gradient=True)


def test_released_losses_are_those_of_the_released_code(released: dict[str, Tensor]) -> None:
    cam, rcam = released["cpn_cam"].clone().requires_grad_(), released["cpn_rcam"].clone().requires_grad_()
    labels, visible = released["labels"], released["cpn_visible"]
    tcp, cpcr = cp_loss(cam, rcam, labels, visible, RELEASED)
    first = cp_loss(cam, None, labels, visible, RELEASED)[0]
    assert first.item() == pytest.approx(float(released["cpn_tcp_cam"]), abs=1e-12)
    assert (tcp - first).item() == pytest.approx(float(released["cpn_tcp_rcam"]), abs=1e-12)
    assert cpcr.item() == pytest.approx(float(released["cpn_cpcr"]), abs=1e-12)


def test_released_targets_are_those_of_the_released_code(released: dict[str, Tensor]) -> None:
    labels, share = released["labels"], released["cpn_visible"][:, None, None, None]
    full, hidden, complement = (normalise_cam(maps, labels) for maps in released["cpn_cam"].chunk(3))
    for part, part_share, name in ((hidden, share, "complement"), (complement, 1 - share, "hidden")):
        found = reference.cross_target(full, part, part_share, "released")
        torch.testing.assert_close(found, released[f"cpn_target_for_{name}"], rtol=0, atol=1e-12)
