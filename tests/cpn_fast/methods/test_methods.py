"""Methods: losses against other libraries' and loop forms, gradients only where the paper lets them flow."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cpn_fast.config.presets import PRESETS, preset_defaults
from cpn_fast.config.training import MethodOptions, TrainConfig, replace_dotted, setting
from cpn_fast.methods import create_method
from cpn_fast.methods.common import classification_loss, equivariant_cross_loss, min_pool_loss
from cpn_fast.methods.cpn import CpnMethod, cp_loss_options
from cpn_fast.methods.seam import SeamMethod, equivariance_losses
from cpn_fast.models import create_model
from cpn_fast.models.cam import CamOutput
from cpn_kernels import CpLossOptions
from cpn_kernels.ops.cp_triplet import normalise_images

SEAM_MAPS = ("cam_full", "cam_small", "rcam_full", "rcam_small")


def batch(size: int = 32, count: int = 2):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    rows = torch.arange(size).div(8, rounding_mode="floor")
    patches = (rows[:, None] * (size // 8) + rows[None]).to(torch.int32).expand(count, size, size).contiguous()
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])[:count]
    return images, patches, torch.arange(count) + 17, labels


def method_of(tmp_path, method="cpn", **options):
    torch.manual_seed(0)
    config = TrainConfig(
        data="demo:",
        output=tmp_path,
        method=method,
        backbone="resnet38_tiny",
        options=MethodOptions(**{"dropout": 0.0, **options}),
    )
    net = create_model(config, 3)
    net.backbone.eval()
    return create_method(config, net)


def test_classification_loss_is_multilabel_soft_margin_over_valid_views():
    scores = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    margin = torch.nn.MultiLabelSoftMarginLoss(reduction="none")
    valid = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    first = (
        margin(scores[0, :1], labels[:1]) + margin(scores[1, :1], labels[:1]) + margin(scores[2, :1], labels[:1])
    ) / 3
    second = (margin(scores[0, 1:], labels[1:]) + margin(scores[2, 1:], labels[1:])) / 2
    expected = (first + second).item() / 2
    assert classification_loss(scores, labels, valid).item() == pytest.approx(expected, rel=1e-6)


def test_equivariant_cross_loss_by_hand():
    # background and two classes over 5 positions: 15 elements, the hardest 20% are three; the second class never wins
    maps = torch.tensor([[0.9, 0.8, 0.3, 0.2, 0.1], [0.1, 0.2, 0.7, 0.8, 0.9], [0.05, 0.1, 0.6, 0.5, 0.4]])[
        None, :, None
    ]
    refined = torch.tensor([[0.9, 0.1, 0.3, 0.2, 0.1], [0.1, 0.9, 0.0, 0.8, 0.9], [0.0, 0.0, 0.1, 0.0, 0.0]])
    # differences: background 0 .7 0 0 0; first class 0 .7 .7 0 0; second class (target 0) 0 0 .1 0 0
    found = equivariant_cross_loss(maps, refined[None, :, None], torch.ones(1, 2), 0.2, "present")
    assert found.item() == pytest.approx((0.7 + 0.7 + 0.7) / 3, abs=1e-6)
    four = equivariant_cross_loss(maps, refined[None, :, None], torch.ones(1, 2), 4 / 15 + 1e-6, "present")
    assert four.item() == pytest.approx((0.7 + 0.7 + 0.7 + 0.1) / 4, abs=1e-6)


def test_min_pool_is_the_mean_of_the_lowest_quarter_of_class_maxima():
    refined = torch.tensor([[[[4.0, 3, 2, 1], [8, 7, 6, 5]], [[9.0, 9, 9, 9], [9, 9, 9, 9]]]])
    labels = torch.tensor([[1.0, 0.0]])  # the second class is absent
    assert min_pool_loss(refined, labels).item() == pytest.approx((1 + 2) / 2)


@pytest.mark.parametrize("method", ["cam", "seam", "seam_prcm", "cpn"])
def test_the_loss_is_the_sum_of_its_parts_and_finite(tmp_path, method):
    out = method_of(tmp_path, method)(*batch())
    parts = [out[name] for name in ("cls", "tcp", "cpcr", "er", "ecr") if name in out]
    assert torch.isfinite(out["loss"])
    assert out["loss"].item() == pytest.approx(sum(p.item() for p in parts), rel=1e-5)
    assert len(parts) == {"cam": 1, "seam": 3, "seam_prcm": 3, "cpn": 3}[method]


@pytest.mark.parametrize("method", ["seam", "cpn"])
def test_warm_up_is_a_plain_classifiers_step(tmp_path, method):
    module = method_of(tmp_path, method).eval()  # no dropout
    images, patches, keys, labels = batch()
    out = module(images, patches, keys, labels, warm_up=True)
    logits = module.net(normalise_images(images)).scores.double()
    expected = -(labels * logits.sigmoid().log() + (1 - labels) * (-logits).sigmoid().log()).mean()
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert not {"tcp", "cpcr", "er", "ecr", "rcam"} & out.keys()
    assert "rcam" in module(images, patches, keys, labels)


def test_nothing_hidden_gives_no_complementary_pair_loss(tmp_path):
    # p = 0 hides nothing: I_h = I, lambda = 1, and L_tcp compares a map with itself
    out = method_of(tmp_path, "cpn", p_hidden=0.0)(*batch())
    assert out["visible"].tolist() == [1.0, 1.0]
    assert out["tcp"].item() == pytest.approx(0.0, abs=1e-6)


def test_refined_terms_leave_backbone_and_classifier_alone(tmp_path):
    module = method_of(tmp_path, "cpn", tcp=False)
    out = module(*batch())
    (out["loss"] - _classification_only(module)).backward()
    assert module.net.f9.weight.grad.abs().sum() > 0
    grad = module.net.classifier.weight.grad
    assert grad is None or grad.abs().max() < 1e-6


def _classification_only(module):
    images, patches, keys, labels = batch()
    options = dataclasses.replace(module.options, tcp=False, cpcr=False)
    other = type(module)(module.net, options)
    return other(images, patches, keys, labels)["loss"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_data_that_the_config_accepts(tmp_path, preset):
    config = replace_dotted(TrainConfig(data="demo:", output=tmp_path), preset_defaults(preset))
    for dotted, value in PRESETS[preset].items():
        assert setting(config, dotted) == value
    out = method_of(tmp_path, "cpn", **{k: v for k, v in dataclasses.asdict(config.options).items() if k != "dropout"})(
        *batch()
    )
    assert torch.isfinite(out["loss"])


class GivenMaps(torch.nn.Module):
    """Stands in for a network at the losses' own resolution: gives these maps, view by view."""

    refinement = "prcm_released"

    def __init__(self, cams, rcams):
        super().__init__()
        self.mean = torch.tensor([0.5, 0.5, 0.5])
        self.cams, self.rcams = iter(cams), iter(rcams)

    def forward(self, views):
        cam = next(self.cams)
        return CamOutput(cam, cam.mean(dim=(2, 3)), cam[:, :0])

    def refine(self, cam, features, labels, map_norm, floor=None):
        return next(self.rcams)

    refine_with_background = refine


def released_options():
    return replace_dotted(TrainConfig(data="demo:", output=Path()), preset_defaults("released")).options


def test_a_released_cpn_step_is_that_of_the_released_code(released, monkeypatch):
    cam, rcam = (released[name].clone().requires_grad_() for name in ("cpn_cam", "cpn_rcam"))
    monkeypatch.setattr("cpn_fast.methods.cpn.cp_triplet", lambda *_, **__: (None, released["cpn_visible"]))
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    out = CpnMethod(GivenMaps([cam], [rcam]), released_options())(images, None, None, released["labels"])
    for name in ("cls", "min_pool", "cpcr", "loss"):
        assert out[name].item() == pytest.approx(released[f"cpn_{name}"].item(), abs=1e-12)
    assert out["tcp"].item() == pytest.approx((released["cpn_tcp_cam"] + released["cpn_tcp_rcam"]).item(), abs=1e-12)
    for found, name in zip(torch.autograd.grad(out["loss"], (cam, rcam)), ("cam", "rcam"), strict=True):
        torch.testing.assert_close(found, released[f"cpn_grad_{name}"], rtol=0, atol=1e-12)


def test_a_released_seam_step_is_that_of_the_released_code(released):
    maps = {name: released[f"seam_{name}"].clone().requires_grad_() for name in SEAM_MAPS}
    net = GivenMaps([maps["cam_full"], maps["cam_small"]], [maps["rcam_full"], maps["rcam_small"]])
    images = torch.zeros(2, 20, 20, 3, dtype=torch.uint8)
    out = SeamMethod(net, released_options())(images, None, None, released["labels"])
    for name in ("cls", "min_pool", "er", "ecr", "loss"):
        assert out[name].item() == pytest.approx(released[f"seam_{name}"].item(), abs=1e-12)
    for found, name in zip(torch.autograd.grad(out["loss"], list(maps.values())), SEAM_MAPS, strict=True):
        torch.testing.assert_close(found, released[f"seam_grad_{name}"], rtol=0, atol=1e-12)


def test_a_released_seam_compares_at_a_share_of_the_inputs_size(tmp_path, monkeypatch):
    sizes = []

    def losses(cams, rcams, labels, options):
        sizes.append([tuple(maps.shape[1:]) for maps in (*cams, *rcams)])
        return equivariance_losses(cams, rcams, labels, options)

    monkeypatch.setattr("cpn_fast.methods.seam.equivariance_losses", losses)
    options = dataclasses.asdict(released_options()) | {"dropout": 0.0}
    out = method_of(tmp_path, "seam", **options)(*batch(size=64))
    assert sizes == [[(3, 64, 64), (3, 19, 19), (4, 64, 64), (4, 19, 19)]]  # 0.3 of 64; RCAM with PCM's background
    parts = sum(out[name].item() for name in ("cls", "er", "ecr", "min_pool"))
    assert out["loss"].item() == pytest.approx(parts, rel=1e-5)
    method_of(tmp_path, "seam")(*batch(size=64))
    assert sizes[1] == [(3, 8, 8), (3, 3, 3), (3, 8, 8), (3, 3, 3)]


def test_the_loss_operator_has_the_defaults_of_a_run():
    assert CpLossOptions() == cp_loss_options(MethodOptions())
    changed = cp_loss_options(MethodOptions(map_norm="max", ohem=0.5, cpcr_target="dense", refined_pair_gradient=True))
    assert changed == CpLossOptions(map_norm="max", ohem=0.5, cpcr_target="dense", refined_pair_gradient=True)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"unknown preset 'fast'.*paper"):
        preset_defaults("fast")


@pytest.mark.parametrize(
    "options",
    [
        {"map_norm": "max"},
        {"pair_norm": "shared"},
        {"pair_norm": "image"},
        {"ohem": 1.0},
        {"ohem_pool": "all"},
        {"cpcr_target": "dense"},
        {"cpcr_target": "released"},
        {"refined_pair_gradient": True},
        {"loss_resolution": "input"},
        {"min_pool_weight": 1.0},
        {"prcm": "softmax"},
        {"tcp_target": "pair"},
        {"tcp_target": "union"},
        {"affinity": "cosine"},
        {"prcm": "released"},
        {"pcm": False},
    ],
)
def test_every_option_changes_the_loss_or_its_gradient(tmp_path, options):
    plain, changed = method_of(tmp_path, "cpn"), method_of(tmp_path, "cpn", **options)
    changed.load_state_dict(plain.state_dict(), strict=False)
    results = []
    for module in (plain, changed):
        out = module(*batch())
        out["loss"].backward()
        grads = [
            p.grad for n, p in module.named_parameters() if (p.grad is not None and "f9" in n) or "classifier" in n
        ]
        results.append((out["loss"].item(), sum(g.abs().sum().item() for g in grads)))
    assert results[0] != pytest.approx(results[1], rel=1e-7)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16, None], ids=str)
def test_the_triplet_is_written_in_the_dtype_of_autocast(tmp_path, monkeypatch, autocast):
    """In bfloat16, and to the network the same numbers: its first convolution would round float32 to them."""
    method, seen = method_of(tmp_path).train(), []
    forward = type(method.net).forward

    def watched(net, views, raw=False):
        seen.append(views)
        return forward(net, views, raw)

    monkeypatch.setattr(type(method.net), "forward", watched)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        loss = method(*batch())["loss"]
    assert loss.isfinite() and seen[0].dtype == (torch.bfloat16 if autocast == torch.bfloat16 else torch.float32)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    method(*batch())
    assert seen[1].dtype == torch.float32
    assert torch.equal(seen[0], seen[1].to(seen[0].dtype))


def test_the_dtype_of_autocast_is_known_to_the_compiler(tmp_path):
    method = method_of(tmp_path).train()
    compiled = torch.compile(method, backend="eager", fullgraph=True, dynamic=False)
    losses = []
    for one in (compiled, method):
        torch.manual_seed(1)  # of the backbone's dropout
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(one(*batch())["loss"])
    torch.testing.assert_close(losses[0], losses[1])
