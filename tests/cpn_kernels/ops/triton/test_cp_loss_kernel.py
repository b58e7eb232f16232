"""The loss kernels against the reference in float64: every option, ties, degenerate maps, upsampling, NaN."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss, launch, reference
from cpn_kernels.ops.cp_loss.op import cp_loss_op

DEFAULT = CpLossOptions(tcp_target="pair")
LABELS = torch.tensor([[1, 0, 1], [0, 1, 0]])
VISIBLE = torch.tensor([0.4, 0.75], dtype=torch.float64)
WEIGHTS = (1.3, 0.7)


def raw_maps(seed: int, height: int = 4, width: int = 7, classes: int = 3) -> Tensor:
    """Distinct numbers in (-1.5, 2.5), no zero among them: [6, K, h, w], with a weak and an empty channel."""
    generator = torch.Generator().manual_seed(seed)
    count = 6 * classes * height * width
    maps = (torch.randperm(count, generator=generator).double() + 0.37) / count * 4 - 1.5
    maps = maps.reshape(6, classes, height, width)
    maps[0, 2] /= 400  # below the least peak
    maps[5, 1] = -maps[5, 1].abs()
    maps[2, 0] = maps[2, 0].abs() + 0.3  # covers everything
    return maps


def law(
    cam: Tensor,
    rcam: Tensor | None,
    options: CpLossOptions,
    size: tuple[int, int] | None,
    labels: Tensor = LABELS,
) -> tuple[Tensor, Tensor]:
    return reference.cp_loss(cam, rcam, labels, VISIBLE, options, size)


def ours(
    cam: Tensor,
    rcam: Tensor | None,
    options: CpLossOptions,
    size: tuple[int, int] | None,
    device: torch.device,
    labels: Tensor = LABELS,
) -> Tensor:
    return cp_loss_op(cam, rcam, labels.to(device), VISIBLE.float().to(device), list(size or ()), *options.values())[0]


def compare(
    cam: Tensor,
    rcam: Tensor | None,
    device: torch.device,
    size: tuple[int, int] | None = None,
    labels: Tensor = LABELS,
    **changed: object,
) -> None:
    """Both losses, and the gradients of a weighted sum of them relative to their largest element."""
    options = dataclasses.replace(DEFAULT, **changed)
    exact = [x.clone().requires_grad_() for x in (cam, rcam) if x is not None]
    single = [x.float().to(device).requires_grad_() for x in (cam, rcam) if x is not None]
    expected = law(exact[0], exact[1] if rcam is not None else None, options, size, labels)
    found = ours(single[0], single[1] if rcam is not None else None, options, size, device, labels)
    torch.testing.assert_close(found.detach().cpu().double(), torch.stack(expected).detach(), rtol=2e-6, atol=1e-6)
    total = expected[0] * WEIGHTS[0] + expected[1] * WEIGHTS[1]
    if not total.requires_grad:
        return
    theirs = torch.autograd.grad(total, exact, allow_unused=True, materialize_grads=True)
    mine = torch.autograd.grad(found, single, torch.tensor(WEIGHTS, device=device))
    for a, b in zip(mine, theirs, strict=True):
        scale = float(b.abs().max()) or 1.0
        torch.testing.assert_close(a.cpu().double() / scale, b / scale, rtol=0, atol=4e-6)


OPTIONS = [
    {},
    {"tcp_target": "image", "ohem": 1.0},
    {"tcp_target": "image", "pair_norm": "shared", "map_norm": "max"},
    {"ohem_pool": "all", "ohem": 0.001},
    {"cpcr_target": "dense", "map_norm": "max"},
    {"cpcr_target": "released", "ohem_pool": "all", "refined_pair_gradient": True},
    {"pair_norm": "shared", "refined_pair_gradient": True},
    {"tcp": False},
    {"cpcr": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(options: dict, device: torch.device) -> None:
    compare(raw_maps(0), raw_maps(1), device, **options)


@pytest.mark.parametrize("target", ["pair", "image"])
def test_without_refined_maps(target: str, device: torch.device) -> None:
    compare(raw_maps(0), None, device, tcp_target=target)


@pytest.mark.parametrize(
    ("grid", "size"),
    [((3, 3), (7, 5)), ((3, 4), (2, 3)), ((1, 4), (3, 6)), ((3, 1), (1, 5))],
    ids=str,
)
def test_upsampled(grid: tuple, size: tuple, device: torch.device) -> None:
    compare(raw_maps(0, *grid), raw_maps(1, *grid), device, size, tcp_target="image")


def test_upsampled_with_the_pair_as_target(device: torch.device) -> None:
    compare(raw_maps(0, 2, 3), raw_maps(1, 2, 3), device, (5, 7))


def test_one_position_and_the_same_size(device: torch.device) -> None:
    compare(raw_maps(0, 1, 1), raw_maps(1, 1, 1), device)
    compare(raw_maps(0, 3, 4), raw_maps(1, 3, 4), device, (3, 4))


FEW_AND_MANY = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 1]])
"""Of six classes the first image has two, the rows of its tiles, the second five: more than there are slots."""


@pytest.mark.parametrize(
    "options",
    [
        {"tcp_target": "image"},
        {"ohem_pool": "all"},
        {"ohem_pool": "all", "ohem": 0.9, "cpcr_target": "dense", "map_norm": "max"},  # counts zeros of absent classes
        {"cpcr_target": "released", "ohem_pool": "all", "refined_pair_gradient": True},
    ],
    ids=str,
)
def test_few_classes_of_many(options: dict, device: torch.device) -> None:
    assert launch.slots(6) == 4 < launch.padded(6)
    maps = [raw_maps(seed, 3, 4, classes=6) for seed in (0, 1)]
    compare(*maps, device, labels=FEW_AND_MANY, **options)


def test_few_classes_of_many_upsampled(device: torch.device) -> None:
    maps = [raw_maps(seed, 3, 3, classes=6) for seed in (0, 1)]
    compare(*maps, device, (7, 5), FEW_AND_MANY, tcp_target="image")


def test_absent_classes_change_nothing_but_the_number_of_elements(device: torch.device) -> None:
    """Two of three classes, and the same two among six: L_tcp is a mean over all classes, L_cpcr's pool is the same."""
    cam, rcam = (raw_maps(seed, 3, 4) for seed in (0, 1))
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    wide, wide_labels = [], torch.zeros(2, 6, dtype=torch.int64)
    wide_labels[:, [1, 2, 5]] = labels
    for maps in (cam, rcam):
        spread = torch.full((6, 6, 3, 4), 7.0, dtype=torch.float64)  # what an absent class shows is not looked at
        spread[:, [1, 2, 5]] = maps
        wide.append(spread)
    narrow = ours(cam.float().to(device), rcam.float().to(device), DEFAULT, None, device, labels)
    found = ours(*(maps.float().to(device) for maps in wide), DEFAULT, None, device, wide_labels)
    torch.testing.assert_close(found, narrow * torch.tensor([0.5, 1.0], device=device), rtol=1e-6, atol=0)


def tied_maps(seed: int) -> Tensor:
    """Maps of three values with minimum 0 and maximum 1 in every channel: under max norm errors tie by the dozen."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 3, (6, 3, 5, 8), generator=generator).double() / 2
    maps[..., 0, 0], maps[..., 0, 1] = 0, 1
    return maps


@pytest.mark.parametrize("ohem", [0.05, 0.5])
def test_ties_count_as_in_topk(ohem: float, device: torch.device) -> None:
    cam, rcam = tied_maps(0), tied_maps(1)
    options = dataclasses.replace(DEFAULT, ohem=ohem, map_norm="max")
    expected = torch.stack(law(cam, rcam, options, None))
    found = ours(cam.float().to(device), rcam.float().to(device), options, None, device)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=2e-6, atol=1e-6)


def test_ties_share_the_gradient(device: torch.device) -> None:
    # The refined maps of both hidden views are constant but for one place, so nearly all errors are equal.
    def refined(value: float) -> Tensor:
        maps = torch.zeros(6, 3, 4, 4, dtype=torch.float64)
        maps[2:] = value
        maps[2:, :, 0, 0] = 1.0
        return maps

    cam = torch.zeros(6, 3, 4, 4)
    options = dataclasses.replace(DEFAULT, map_norm="max", tcp=False, ohem=0.5)
    rcam = refined(0.5).float().to(device).requires_grad_()
    gradient = torch.autograd.grad(ours(cam.to(device), rcam, options, None, device)[1], rcam)[0].cpu().double()
    inner = gradient[2:].flatten(2)[:, :, 1:]
    torch.testing.assert_close(inner, inner[:, :, :1].expand_as(inner))  # no place is preferred to another
    above, below = (float(law(cam.double(), refined(0.5 + d), options, None)[1]) for d in (1e-3, -1e-3))
    assert float(inner.sum()) == pytest.approx((above - below) / 2e-3, rel=1e-4)  # and together they are the slope


@pytest.mark.parametrize(("value", "map_norm"), [(0.0, "minmax"), (-1.0, "max"), (2.0, "minmax"), (2.0, "max")])
def test_constant_maps(value: float, map_norm: str, device: torch.device) -> None:
    maps = torch.full((6, 3, 3, 3), value, device=device, requires_grad=True)
    options = dataclasses.replace(DEFAULT, map_norm=map_norm)
    found = ours(maps, maps, options, None, device)
    constant = torch.full((6, 3, 3, 3), value, dtype=torch.float64)
    torch.testing.assert_close(
        found.detach().cpu().double(), torch.stack(law(constant, constant, options, None)), rtol=0, atol=1e-6
    )
    gradient = torch.autograd.grad(found.sum(), maps)[0]
    assert gradient.isfinite().all() and (value > 0 or (gradient == 0).all())


def test_no_class_present(device: torch.device) -> None:
    cam, rcam = (raw_maps(s).float().to(device).requires_grad_() for s in (0, 1))
    losses = cp_loss_op(cam, rcam, torch.zeros(2, 3, device=device), VISIBLE.float().to(device), [], *DEFAULT.values())[
        0
    ]
    torch.testing.assert_close(losses.detach().cpu(), torch.zeros(2), rtol=0, atol=1e-6)
    assert all((x == 0).all() for x in torch.autograd.grad(losses.sum(), (cam, rcam)))


def test_nan_stays_visible(device: torch.device) -> None:
    for broken in (0, 1):
        maps = [raw_maps(0).float().to(device), raw_maps(1).float().to(device)]
        maps[broken][2, 0, 1, 1] = float("nan")
        assert ours(*maps, DEFAULT, None, device).isnan().all()


def test_any_memory_layout_and_half_precision(device: torch.device) -> None:
    cam, rcam = raw_maps(0).bfloat16().to(device), raw_maps(1).float().to(device)
    expected = ours(cam.float(), rcam, DEFAULT, None, device)
    last = cam.to(memory_format=torch.channels_last).requires_grad_()
    found = ours(last, rcam.transpose(2, 3).contiguous().transpose(2, 3), DEFAULT, None, device)
    assert torch.equal(found, expected)
    assert torch.autograd.grad(found.sum(), last)[0].dtype == torch.bfloat16


def test_opcheck(device: torch.device) -> None:
    # One image and one class: the operator runs eight times, and its registration is looked at, not its numbers.
    cam, rcam = (raw_maps(s, 2, 3)[:3, :1].float().to(device).requires_grad_() for s in (0, 1))
    arguments = (cam, rcam, LABELS[:1, :1].to(device), VISIBLE[:1].float().to(device), [], *DEFAULT.values())
    torch.library.opcheck(cp_loss_op, arguments)


def released_rest(cam: Tensor, rcam: Tensor, labels: Tensor) -> Tensor:
    """Classification and min pooling of the released CPN step, which no kernel computes."""
    cls = torch.nn.functional.multilabel_soft_margin_loss(cam.mean(dim=(2, 3)), labels.repeat(3, 1))
    lowest = (rcam * labels.repeat(3, 1)[:, :, None, None]).amax(dim=1).flatten(1)
    return cls + lowest.topk(lowest.shape[1] // 4, dim=1, largest=False).values.relu().mean()


def test_released_step_is_that_of_the_released_code(released: dict[str, Tensor], device: torch.device) -> None:
    options = CpLossOptions(tcp_target="pair", cpcr_target="released", ohem_pool="all", refined_pair_gradient=True)
    maps = [released[name].float().to(device).requires_grad_() for name in ("cpn_cam", "cpn_rcam")]
    labels, visible = released["labels"].to(device), released["cpn_visible"].float().to(device)
    losses = cp_loss_op(*maps, labels, visible, [], *options.values())[0]
    expected = torch.stack([released["cpn_tcp_cam"] + released["cpn_tcp_rcam"], released["cpn_cpcr"]])
    torch.testing.assert_close(losses.detach().cpu().double(), expected, rtol=0, atol=1e-7)
    total = losses.sum() + released_rest(*maps, labels.float())
    torch.testing.assert_close(total.detach().cpu().double(), released["cpn_loss"], rtol=0, atol=2e-7)
    for found, name in zip(torch.autograd.grad(total, maps), ("cpn_grad_cam", "cpn_grad_rcam"), strict=True):
        torch.testing.assert_close(found.cpu().double(), released[name], rtol=0, atol=1e-8)


@pytest.mark.usefixtures("kernels_only")
def test_compiles_whole(device: torch.device) -> None:
    cam, rcam = (raw_maps(s, 2, 3).float().to(device).requires_grad_() for s in (0, 1))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        tcp, cpcr = cp_loss(a, b, LABELS.to(device), VISIBLE.float().to(device), size=(3, 4))
        return tcp + cpcr

    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(cam, rcam)
    torch.testing.assert_close(found, loss(cam, rcam), rtol=0, atol=0)
    ours_, theirs = (torch.autograd.grad(x, (cam, rcam)) for x in (found, loss(cam, rcam)))
    torch.testing.assert_close(ours_, theirs, rtol=0, atol=0)
