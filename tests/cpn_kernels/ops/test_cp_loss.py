"""The complementary-pair losses: by hand, against a float64 loop, and their gradients, also where none may flow."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cpn_kernels.cam_norm import normalise_cam
from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss, ohem_mean, reference

LABELS = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
VISIBLE = torch.tensor([0.4, 0.75, 0.5], dtype=torch.float64)
PAIR = CpLossOptions(tcp_target="pair")


def raw_maps(seed: int, height: int = 4, width: int = 5) -> Tensor:
    """Distinct numbers in (-1.5, 2.5), no zero among them: [9, 4, h, w], with a weak and an empty channel."""
    generator = torch.Generator().manual_seed(seed)
    count = 9 * 4 * height * width
    maps = (torch.randperm(count, generator=generator).double() + 0.37) / count * 4 - 1.5
    maps = maps.reshape(9, 4, height, width)
    maps[0, 2] /= 400  # below the least peak
    maps[5, 3] = -maps[5, 3].abs()
    maps[8, 1] = maps[8, 1].abs() + 0.3  # covers everything
    return maps


def loop_normalise(raw: np.ndarray, label: int, map_norm: str, floor: float = 0.0) -> np.ndarray:
    rectified = np.maximum(raw, 0)
    low, high = rectified.min(), rectified.max()
    if label == 0 or high < 1e-2:
        return np.zeros_like(raw)
    scale = max(high, floor)
    if map_norm == "max":
        return rectified / (scale + 1e-5)
    return np.maximum(rectified - low - 1e-5, 0) / (scale - low + 1e-5)


def loop_views(triplet: Tensor, image: int, map_norm: str, pair_norm: str) -> list[np.ndarray]:
    """Y_o, Y_h, Y_hbar of one image, each [K, h, w]."""
    raw = triplet.double().numpy()
    batch = len(raw) // 3
    views = []
    for view in range(3):
        channels = []
        for c in range(raw.shape[1]):
            floor = max(raw[image, c].max(), 0.0) if pair_norm == "shared" and view > 0 else 0.0
            channels.append(loop_normalise(raw[view * batch + image, c], int(LABELS[image, c]), map_norm, floor))
        views.append(np.stack(channels))
    return views


def loop_target(full: np.ndarray, part: np.ndarray, share: float, form: str) -> np.ndarray:
    """The unrefined side of eq. 15, one position at a time; [K + 1, h, w]."""
    classes, height, width = full.shape
    out = np.zeros((classes + 1, height, width))
    for y, x in itertools.product(range(height), range(width)):
        o, p = full[:, y, x], part[:, y, x]
        if form == "released":
            scaled = [share * b for b in p]
            rest = [(1 - max(o)) - (1 - max(scaled)), *(a - b for a, b in zip(o, scaled, strict=True))]
            best = rest.index(max(rest))
            out[best, y, x] = rest[best]
            continue
        o, p = [1 - max(o), *o], [1 - max(p), *p]
        for c in range(classes + 1):
            rest = o[c] - share * p[c]
            if form == "winner":
                wins = c == 0 or o[1:].index(max(o[1:])) == c - 1
                rest = min(max(rest, 0.0), 1 - share) if wins else 0.0
            out[c, y, x] = rest
    return out


def loop_ohem(errors: np.ndarray, pool: list[int], fraction: float) -> float:
    chosen = sorted((float(e) for c in pool for e in errors[c].ravel()), reverse=True)
    return float(np.mean(chosen[: max(1, int(fraction * len(chosen)))]))


def loop_loss(
    cam: Tensor,
    rcam: Tensor,
    *,
    map_norm: str = "minmax",
    pair_norm: str = "own",
    ohem: float = 0.2,
    ohem_pool: str = "present",
    cpcr_target: str = "winner",
) -> tuple[float, float]:
    """Equations 14 and 15 image by image."""
    tcp, cpcr = [], []
    for image in range(len(LABELS)):
        share = float(VISIBLE[image])
        plain = loop_views(cam, image, map_norm, pair_norm)
        refined = loop_views(rcam, image, map_norm, pair_norm)
        tcp.append(sum(np.abs(share * h + (1 - share) * b - o).mean() for o, h, b in (plain, refined)))
        pool = [c for c in range(5) if ohem_pool == "all" or c == 0 or LABELS[image, c - 1]]
        total = 0.0
        for part, other, part_share in ((plain[1], refined[2], share), (plain[2], refined[1], 1 - share)):
            target = loop_target(plain[0], part, part_share, cpcr_target)
            found = (1 - part_share) * np.concatenate([1 - other.max(0, keepdims=True), other])
            if cpcr_target == "released":
                found[0] = 1 - found[1:].max(0)
            total += loop_ohem(np.abs(target - found), pool, ohem)
        cpcr.append(total)
    return float(np.mean(tcp)), float(np.mean(cpcr))


OPTIONS = [
    {"cpcr_target": target, "ohem": ohem, "ohem_pool": pool}
    for target in ("winner", "dense", "released")
    for ohem, pool in ((0.2, "present"), (0.2, "all"), (1.0, "present"), (1.0, "all"), (0.001, "present"))
] + [
    {"map_norm": "max"},
    {"pair_norm": "shared"},
    {"map_norm": "max", "pair_norm": "shared", "cpcr_target": "dense"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_against_loop(options: dict) -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    ours = cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(**options))
    assert [float(x) for x in ours] == pytest.approx(loop_loss(cam, rcam, **options), abs=1e-13)


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
    assert [float(x) for x in ours] == pytest.approx(loop_loss(upsampled(cam), upsampled(rcam)), abs=1e-12)


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


def test_shared_norm_takes_the_full_maximum_as_a_constant() -> None:
    cam, rcam = raw_maps(0), raw_maps(1)
    rcam[:3] += 3  # the full image's maximum rules
    rcam.requires_grad_()
    loss = cp_loss(cam, rcam, LABELS, VISIBLE, CpLossOptions(pair_norm="shared", refined_pair_gradient=True))[1]
    assert (torch.autograd.grad(loss, rcam)[0][:3] == 0).all()


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
    assert float(first) == pytest.approx(float(released["cpn_tcp_cam"]), abs=1e-12)
    assert float(tcp - first) == pytest.approx(float(released["cpn_tcp_rcam"]), abs=1e-12)
    assert float(cpcr) == pytest.approx(float(released["cpn_cpcr"]), abs=1e-12)


def test_released_targets_are_those_of_the_released_code(released: dict[str, Tensor]) -> None:
    labels, share = released["labels"], released["cpn_visible"][:, None, None, None]
    full, hidden, complement = (normalise_cam(maps, labels) for maps in released["cpn_cam"].chunk(3))
    for part, part_share, name in ((hidden, share, "complement"), (complement, 1 - share, "hidden")):
        found = reference.cross_target(full, part, part_share, "released")
        torch.testing.assert_close(found, released[f"cpn_target_for_{name}"], rtol=0, atol=1e-12)
