"""Backbones against the published layouts and counts, and against unfolded functional references in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cpn_fast.config.backbones import BACKBONE_NAMES
from cpn_fast.config.recipes import RECIPES
from cpn_fast.models.backbones import BACKBONES, create_backbone, resnet38
from cpn_fast.models.backbones.common import relu6_

NAMES = ("resnet38_tiny", "resnet50", "mobilenet_v2", "efficientnet_lite2")
State = dict[str, Tensor]


def randomise(backbone: torch.nn.Module) -> None:
    """Give every batch norm statistics and affine of its own, so that a mix-up cannot hide."""
    generator = torch.Generator().manual_seed(3)
    for value in backbone.state_dict().values():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def prepared(name: str, frozen: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = create_backbone(name, frozen)
    randomise(backbone)
    return backbone.double()


def images(batch: int = 2, height: int = 33, width: int = 49) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- published layouts, written out ---------------------------------------------------------------------------------

NORM = ("weight", "bias", "running_mean", "running_var")
# psa's resnet38d: block -> (inputs, middle, outputs, shortcut convolution); bottlenecks have two middle widths
RESNET38 = {
    "b2": (64, 128, 128, True), "b2_1": (128, 128, 128, False), "b2_2": (128, 128, 128, False),
    "b3": (128, 256, 256, True), "b3_1": (256, 256, 256, False), "b3_2": (256, 256, 256, False),
    "b4": (256, 512, 512, True), "b4_1": (512, 512, 512, False), "b4_2": (512, 512, 512, False),
    "b4_3": (512, 512, 512, False), "b4_4": (512, 512, 512, False), "b4_5": (512, 512, 512, False),
    "b5": (512, 512, 1024, True), "b5_1": (1024, 512, 1024, False), "b5_2": (1024, 512, 1024, False),
}  # fmt: skip
RESNET38_BOTTLENECKS = {"b6": (1024, 512, 1024, 2048), "b7": (2048, 1024, 2048, 4096)}
# torchvision's mobilenet_v2: features.i -> (inputs, hidden, outputs); i = 1 has no expansion
MOBILENET = {
    1: (32, 32, 16), 2: (16, 96, 24), 3: (24, 144, 24), 4: (24, 144, 32), 5: (32, 192, 32), 6: (32, 192, 32),
    7: (32, 192, 64), 8: (64, 384, 64), 9: (64, 384, 64), 10: (64, 384, 64), 11: (64, 384, 96), 12: (96, 576, 96),
    13: (96, 576, 96), 14: (96, 576, 160), 15: (160, 960, 160), 16: (160, 960, 160), 17: (160, 960, 320),
}  # fmt: skip
# torchvision's resnet50: stage -> (inputs, width, outputs, blocks)
RESNET50 = {
    "layer1": (64, 64, 256, 3), "layer2": (256, 128, 512, 4), "layer3": (512, 256, 1024, 6),
    "layer4": (1024, 512, 2048, 3),
}  # fmt: skip
# timm's tf_efficientnet_lite2: stage -> (inputs, outputs, kernel, blocks, stride); stage 0 has no expansion
LITE2 = {
    0: (32, 16, 3, 1, 1), 1: (16, 24, 3, 3, 2), 2: (24, 48, 5, 3, 2), 3: (48, 88, 3, 4, 2), 4: (88, 120, 5, 4, 1),
    5: (120, 208, 5, 5, 2), 6: (208, 352, 3, 1, 1),
}  # fmt: skip


def norm_layout(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{field}": (channels,) for field in NORM}


def resnet38_layout() -> dict[str, tuple[int, ...]]:
    layout: dict[str, tuple[int, ...]] = {"conv1a.weight": (64, 3, 3, 3)} | norm_layout("bn7", 4096)
    for block, (inputs, middle, outputs, shortcut) in RESNET38.items():
        layout |= norm_layout(f"{block}.bn_branch2a", inputs) | norm_layout(f"{block}.bn_branch2b1", middle)
        layout[f"{block}.conv_branch2a.weight"] = (middle, inputs, 3, 3)
        layout[f"{block}.conv_branch2b1.weight"] = (outputs, middle, 3, 3)
        if shortcut:
            layout[f"{block}.conv_branch1.weight"] = (outputs, inputs, 1, 1)
    for block, (inputs, first, second, outputs) in RESNET38_BOTTLENECKS.items():
        layout |= norm_layout(f"{block}.bn_branch2a", inputs) | norm_layout(f"{block}.bn_branch2b1", first)
        layout |= norm_layout(f"{block}.bn_branch2b2", second)
        layout[f"{block}.conv_branch2a.weight"] = (first, inputs, 1, 1)
        layout[f"{block}.conv_branch2b1.weight"] = (second, first, 3, 3)
        layout[f"{block}.conv_branch2b2.weight"] = (outputs, second, 1, 1)
        layout[f"{block}.conv_branch1.weight"] = (outputs, inputs, 1, 1)
    return layout


def mobilenet_layout() -> dict[str, tuple[int, ...]]:
    layout: dict[str, tuple[int, ...]] = {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.18.0.weight": (1280, 320, 1, 1),
    }
    layout |= norm_layout("features.0.1", 32) | norm_layout("features.18.1", 1280)
    for index, (inputs, hidden, outputs) in MOBILENET.items():
        prefix, depthwise = f"features.{index}.conv", 0
        if index > 1:
            layout |= {f"{prefix}.0.0.weight": (hidden, inputs, 1, 1)} | norm_layout(f"{prefix}.0.1", hidden)
            depthwise = 1
        layout |= {f"{prefix}.{depthwise}.0.weight": (hidden, 1, 3, 3)} | norm_layout(f"{prefix}.{depthwise}.1", hidden)
        layout[f"{prefix}.{depthwise + 1}.weight"] = (outputs, hidden, 1, 1)
        layout |= norm_layout(f"{prefix}.{depthwise + 2}", outputs)
    return layout


def resnet50_layout() -> dict[str, tuple[int, ...]]:
    layout: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)} | norm_layout("bn1", 64)
    for stage, (inputs, width, outputs, blocks) in RESNET50.items():
        for index in range(blocks):
            block, source = f"{stage}.{index}", inputs if index == 0 else outputs
            layout[f"{block}.conv1.weight"] = (width, source, 1, 1)
            layout[f"{block}.conv2.weight"] = (width, width, 3, 3)
            layout[f"{block}.conv3.weight"] = (outputs, width, 1, 1)
            layout |= norm_layout(f"{block}.bn1", width) | norm_layout(f"{block}.bn2", width)
            layout |= norm_layout(f"{block}.bn3", outputs)
        layout[f"{stage}.0.downsample.0.weight"] = (outputs, inputs, 1, 1)
        layout |= norm_layout(f"{stage}.0.downsample.1", outputs)
    return layout


def lite2_layout() -> dict[str, tuple[int, ...]]:
    layout: dict[str, tuple[int, ...]] = {"conv_stem.weight": (32, 3, 3, 3), "conv_head.weight": (1280, 352, 1, 1)}
    layout |= norm_layout("bn1", 32) | norm_layout("bn2", 1280)
    for stage, (inputs, outputs, kernel, blocks, _) in LITE2.items():
        for index in range(blocks):
            block, source = f"blocks.{stage}.{index}", inputs if index == 0 else outputs
            if stage == 0:
                layout[f"{block}.conv_dw.weight"] = (source, 1, kernel, kernel)
                layout[f"{block}.conv_pw.weight"] = (outputs, source, 1, 1)
                layout |= norm_layout(f"{block}.bn1", source) | norm_layout(f"{block}.bn2", outputs)
                continue
            layout[f"{block}.conv_pw.weight"] = (6 * source, source, 1, 1)
            layout[f"{block}.conv_dw.weight"] = (6 * source, 1, kernel, kernel)
            layout[f"{block}.conv_pwl.weight"] = (outputs, 6 * source, 1, 1)
            layout |= norm_layout(f"{block}.bn1", 6 * source) | norm_layout(f"{block}.bn2", 6 * source)
            layout |= norm_layout(f"{block}.bn3", outputs)
    return layout


LAYOUTS = {
    "resnet38": resnet38_layout,
    "mobilenet_v2": mobilenet_layout,
    "resnet50": resnet50_layout,
    "efficientnet_lite2": lite2_layout,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        state = create_backbone(name).state_dict()
    found = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert found == LAYOUTS[name]()


@pytest.mark.parametrize(
    ("name", "parameters"),
    # torchvision's documented counts, 3,504,872 and 25,557,032, and timm's 6,092,072, less the classifiers of 1000
    [
        ("resnet38", 105_070_912),
        ("mobilenet_v2", 3_504_872 - 1281 * 1000),
        ("resnet50", 25_557_032 - 2049 * 1000),
        ("efficientnet_lite2", 6_092_072 - 1281 * 1000),
    ],
)
def test_parameter_count(name: str, parameters: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_resnet38_freezes_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        backbone = create_backbone("resnet38")
    assert sum(p.numel() for stage in backbone.early_stages() for p in stage.parameters()) == 822_336
    assert sum(p.numel() for p in backbone.parameters() if not p.requires_grad) == 868_672


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet38_tiny", ("conv1a.", "b2.", "b2_1.", "b2_2.")),
        ("resnet50", ("conv1.", "layer1.")),
        ("mobilenet_v2", ()),
        ("efficientnet_lite2", ()),
    ],
)
def test_only_early_stages_and_norms_are_frozen(name: str, stages: tuple[str, ...]) -> None:
    for key, parameter in create_backbone(name).named_parameters():
        assert parameter.requires_grad == (parameter.ndim == 4 and not key.startswith(stages or "none")), key
    assert all(p.requires_grad for p in create_backbone(name, frozen=False).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_norms_stay_in_eval_mode_and_others_train(name: str) -> None:
    for frozen in (True, False):
        backbone = prepared(name, frozen).train()
        before = copy.deepcopy(backbone.state_dict())
        with torch.no_grad():
            backbone(images())
        changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
        running = {key for key in before if "running_" in key or key.endswith("tracked")}
        assert changed == (set() if frozen else running)
        assert all(norm.training != frozen for norm in backbone.batch_norms())
        assert not any(norm.training for norm in backbone.eval().batch_norms())


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"vgg16: unknown; expected resnet38, .*mobilenet_v2, .*timm:NAME"):
        create_backbone("vgg16")


def test_the_names_of_the_settings_are_those_that_are_there() -> None:
    assert tuple(BACKBONES) == BACKBONE_NAMES
    for recipes in RECIPES.values():
        assert recipes.keys() == {*BACKBONE_NAMES, "other"}


# --- functional references: convolution, then batch norm, nothing folded, nothing in place ---------------------------


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    weight, bias, mean, var = (state[f"{name}.{field}"].view(1, -1, 1, 1) for field in NORM)
    return (x - mean) / (var + eps).sqrt() * weight + bias


def conv(state: State, name: str, x: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    padding = weight.shape[2] // 2 * dilation
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def reference_resnet38(state: State, x: Tensor) -> tuple[Tensor, ...]:
    x, taken = conv(state, "conv1a", x), {}
    for block, (*_, shortcut) in RESNET38.items():
        stride = 2 if block in ("b2", "b3", "b4") else 1
        first_dilation, dilation = (1, 2) if block == "b5" else (2, 2) if block.startswith("b5") else (1, 1)
        taken[block] = a = norm(state, f"{block}.bn_branch2a", x).relu()
        b = norm(
            state, f"{block}.bn_branch2b1", conv(state, f"{block}.conv_branch2a", a, stride, first_dilation)
        ).relu()
        x = x if not shortcut else conv(state, f"{block}.conv_branch1", a, stride)
        x = x + conv(state, f"{block}.conv_branch2b1", b, dilation=dilation)
    for block in RESNET38_BOTTLENECKS:
        taken[block] = a = norm(state, f"{block}.bn_branch2a", x).relu()
        b = norm(state, f"{block}.bn_branch2b1", conv(state, f"{block}.conv_branch2a", a)).relu()
        b = norm(state, f"{block}.bn_branch2b2", conv(state, f"{block}.conv_branch2b1", b, dilation=4)).relu()
        x = conv(state, f"{block}.conv_branch1", a) + conv(state, f"{block}.conv_branch2b2", b)
    return taken["b5"], taken["b6"], norm(state, "bn7", x).relu()


def reference_mobilenet(state: State, x: Tensor, cam_stride: int = 16) -> tuple[Tensor, ...]:
    x = norm(state, "features.0.1", conv(state, "features.0.0", x, 2)).clamp(0, 6)
    taken = {}
    for index, (inputs, hidden, outputs) in MOBILENET.items():
        prefix, y, depthwise = f"features.{index}.conv", x, 0
        if index > 1:
            y, depthwise = norm(state, f"{prefix}.0.1", conv(state, f"{prefix}.0.0", y)).clamp(0, 6), 1
        strided = (2, 4, 7) if cam_stride == 16 else (2, 4)
        dilation = 2 if index >= 15 else 1
        if cam_stride == 8:
            dilation = 4 if index >= 15 else 2 if index >= 8 else 1
        y = conv(state, f"{prefix}.{depthwise}.0", y, 2 if index in strided else 1, dilation, hidden)
        y = norm(state, f"{prefix}.{depthwise}.1", y).clamp(0, 6)
        y = norm(state, f"{prefix}.{depthwise + 2}", conv(state, f"{prefix}.{depthwise + 1}", y))
        x = taken[index] = x + y if inputs == outputs else y
    return taken[6], taken[13], norm(state, "features.18.1", conv(state, "features.18.0", x)).clamp(0, 6)


def reference_resnet50(state: State, x: Tensor) -> tuple[Tensor, ...]:
    x = F.max_pool2d(norm(state, "bn1", conv(state, "conv1", x, 2)).relu(), 3, 2, 1)
    taken = {}
    for stage, (*_, blocks) in RESNET50.items():
        for index in range(blocks):
            block, first = f"{stage}.{index}", index == 0
            stride = 2 if first and stage == "layer2" else 1
            dilation = {"layer3": 1 if first else 2, "layer4": 2 if first else 4}.get(stage, 1)
            y = norm(state, f"{block}.bn1", conv(state, f"{block}.conv1", x)).relu()
            y = norm(state, f"{block}.bn2", conv(state, f"{block}.conv2", y, stride, dilation)).relu()
            y = norm(state, f"{block}.bn3", conv(state, f"{block}.conv3", y))
            if first:
                x = norm(state, f"{block}.downsample.1", conv(state, f"{block}.downsample.0", x, stride))
            x = (x + y).relu()
        taken[stage] = x
    return taken["layer2"], taken["layer3"], taken["layer4"]


def same(x: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """TensorFlow's SAME padding as its documentation writes it."""
    rows, columns = (
        max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0) for side in x.shape[2:]
    )
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def reference_lite2(state: State, x: Tensor, cam_stride: int = 16) -> tuple[Tensor, ...]:
    def unit(x: Tensor, conv: str, bn: str, stride: int = 1, dilation: int = 1, relu: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(same(x, weight.shape[2], stride, dilation), weight, None, stride, 0, dilation, groups)
        x = norm(state, bn, x, eps=1e-3)
        return x.clamp(0, 6) if relu else x

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (x * std.double() + mean.double() - 0.5) / 0.5
    x, taken = unit(x, "conv_stem", "bn1", 2), {}
    for stage, (*_, blocks, stride) in LITE2.items():
        if stage in (5, *((3,) if cam_stride == 8 else ())):
            stride = 1
        for index in range(blocks):
            name, first = f"blocks.{stage}.{index}", index == 0
            dilation = 2 if (stage == 5 and not first) or stage == 6 else 1
            if cam_stride == 8:
                late = {3: 1 if first else 2, 4: 2, 5: 2 if first else 4, 6: 4}
                dilation = late.get(stage, 1)
            if stage == 0:
                x = unit(unit(x, f"{name}.conv_dw", f"{name}.bn1"), f"{name}.conv_pw", f"{name}.bn2", relu=False)
                continue
            y = unit(x, f"{name}.conv_pw", f"{name}.bn1")
            y = unit(y, f"{name}.conv_dw", f"{name}.bn2", stride if first else 1, dilation)
            y = unit(y, f"{name}.conv_pwl", f"{name}.bn3", relu=False)
            x = y if first else x + y
        taken[stage] = x
    return taken[2], taken[4], unit(x, "conv_head", "bn2")


REFERENCES = {
    "resnet38_tiny": reference_resnet38,
    "mobilenet_v2": reference_mobilenet,
    "mobilenet_v2_stride8": lambda state, x: reference_mobilenet(state, x, 8),
    "resnet50": reference_resnet50,
    "efficientnet_lite2": reference_lite2,
    "efficientnet_lite2_stride8": lambda state, x: reference_lite2(state, x, 8),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_features_and_gradients_equal_the_unfolded_reference(name: str) -> None:
    backbone = prepared(name)
    backbone.train(not name.startswith("resnet38"))  # the reference has no dropout
    x = images()
    kept = x.clone()
    features = backbone(x)
    assert torch.equal(x, kept)
    state = {key: value.detach().requires_grad_(value.ndim == 4) for key, value in backbone.state_dict().items()}
    expected = REFERENCES[name](state, x)
    for found, wanted, channels, stride in zip(features, expected, backbone.channels, backbone.strides, strict=True):
        assert found.shape == (2, channels, -(-33 // stride), -(-49 // stride))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10 * wanted.abs().max().item())
    sum(
        torch.sin(value / wanted.std().detach()).mean() for value, wanted in zip(features, expected, strict=True)
    ).backward()
    sum(torch.sin(value / value.std().detach()).mean() for value in expected).backward()
    trained = {key: parameter for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained
    for key, parameter in trained.items():
        gradient = state[key].grad
        assert gradient is not None and gradient.abs().max() > 0, key
        scale = 1e-9 * gradient.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-9, atol=scale, msg=lambda text, key=key: f"{key}: {text}"
        )
    for key, parameter in backbone.named_parameters():
        assert key in trained or parameter.grad is None


@pytest.mark.parametrize(("height", "width"), [(32, 52), (34, 37), (5, 8)])
def test_same_padding_of_even_and_odd_sides(height: int, width: int) -> None:
    """What a strided SAME convolution pads before depends on the side's parity, stage by stage."""
    backbone = prepared("efficientnet_lite2").eval()
    x = images(1, height, width)
    with torch.no_grad():
        for found, wanted in zip(backbone(x), reference_lite2(backbone.state_dict(), x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10 * wanted.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_unfrozen_norms_use_and_train_the_batch(name: str) -> None:
    backbone = prepared(name, frozen=False)
    sum(value.square().mean() for value in backbone(images())).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in backbone.parameters())
    affine = backbone.batch_norms()[-1]
    assert affine.weight.grad.abs().max() > 0 and affine.bias.grad.abs().max() > 0
    if name != "resnet38_tiny":  # whose last map goes through ReLU after dropout; see its own test
        x = images()
        backbone.eval()
        evaluated = backbone(x)[2]
        assert not torch.allclose(backbone.train()(x)[2], evaluated, rtol=1e-3)


def test_eval_mode_norm_affine_has_a_gradient_when_nothing_is_frozen() -> None:
    backbone = prepared("resnet38_tiny", frozen=False).eval()
    backbone(images())[2].mean().backward()
    state = {
        key: value.detach().requires_grad_(value.is_floating_point()) for key, value in backbone.state_dict().items()
    }
    reference_resnet38(state, images())[2].mean().backward()
    for key in ("b4.bn_branch2a.weight", "b4.bn_branch2b1.weight", "b6.bn_branch2b2.bias"):
        torch.testing.assert_close(backbone.get_parameter(key).grad, state[key].grad, rtol=1e-9, atol=1e-15)


def test_resnet38_dropout_is_by_channel_and_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = F.dropout2d

    def recorded(x: Tensor, p: float, training: bool) -> Tensor:
        out = original(x, p, training)
        calls.append((p, training, x.detach().clone(), out.detach().clone()))
        return out

    monkeypatch.setattr(resnet38.F, "dropout2d", recorded)
    backbone = prepared("resnet38_tiny").train()
    backbone(images())
    assert [(p, training, x.shape[1]) for p, training, x, _ in calls] == [
        (0.3, True, 64), (0.3, True, 128), (0.5, True, 128), (0.5, True, 256),
    ]  # fmt: skip
    for p, _, x, out in calls:
        dropped = (out == 0).all(dim=(2, 3))
        torch.testing.assert_close(out, x / (1 - p) * ~dropped[:, :, None, None])
        alive = (x != 0).any(dim=(2, 3))
        assert abs((dropped & alive).sum() / alive.sum() - p) < 0.15
    calls.clear()
    evaluated = backbone.eval()
    assert torch.equal(evaluated(images())[2], evaluated(images())[2])
    assert all(not training and torch.equal(x, out) for _, training, x, out in calls)


@pytest.mark.parametrize("name", ["resnet38_tiny", "mobilenet_v2"])
@pytest.mark.slow
def test_compiles_without_graph_breaks(name: str) -> None:
    backbone = prepared(name).eval()
    # aot_eager traces the backward pass too; one network is enough for it, all share the same pieces
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager" if name == "resnet38_tiny" else "eager")
    found = compiled(images())
    for value, wanted in zip(found, backbone(images()), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)
    sum(value.mean() for value in found).backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["resnet38_tiny", "resnet50", "efficientnet_lite2"])
@pytest.mark.slow
def test_exports_with_any_batch_and_size(name: str) -> None:
    if name == "resnet50" and torch.__version__.startswith("2.11"):
        pytest.skip("torch 2.11 asks for even sizes where it exports max_pool2d")
    backbone = prepared(name).eval()
    # torch.export reserves size 1 for constants, so every feature map has at least 2 rows and columns
    batch = torch.export.Dim("batch", min=2, max=64)
    height, width = (torch.export.Dim(axis, min=33, max=4096) for axis in ("height", "width"))
    exported = torch.export.export(backbone, (images(),), dynamic_shapes=({0: batch, 2: height, 3: width},)).module()
    other = images(3, 70, 38)
    for value, wanted in zip(exported(other), backbone(other), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_keeps_channels_last_and_runs_in_bf16(name: str) -> None:
    backbone = prepared(name).float().to(memory_format=torch.channels_last).eval()
    x = images().float().contiguous(memory_format=torch.channels_last)
    exact = backbone(x)
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in exact)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(x)
    for value, wanted in zip(rounded, exact, strict=True):
        assert value.dtype == torch.bfloat16
        assert (value.float() - wanted).norm() / wanted.norm() < 0.05


def test_resnet38_tiny_has_an_eighth_of_the_width() -> None:
    with torch.device("meta"):
        tiny, full = create_backbone("resnet38_tiny"), create_backbone("resnet38")
    assert tiny.channels == (64, 128, 512) and full.channels == (512, 1024, 4096)
    assert tiny.state_dict().keys() == full.state_dict().keys()


def test_every_registered_backbone_says_its_channels_and_strides() -> None:
    with torch.device("meta"):
        stated = {name: (create_backbone(name).channels, create_backbone(name).strides) for name in BACKBONES}
    assert stated == {
        "resnet38": ((512, 1024, 4096), (8, 8, 8)),
        "resnet38_tiny": ((64, 128, 512), (8, 8, 8)),
        "resnet50": ((512, 1024, 2048), (8, 8, 8)),
        "mobilenet_v2": ((32, 96, 1280), (8, 16, 16)),
        "mobilenet_v2_stride8": ((32, 96, 1280), (8, 8, 8)),
        "efficientnet_lite2": ((48, 120, 1280), (8, 16, 16)),
        "efficientnet_lite2_stride8": ((48, 120, 1280), (8, 8, 8)),
        "vit_small_patch16": ((384, 384, 384), (16, 16, 16)),
        "deit_small_patch16": ((384, 384, 384), (16, 16, 16)),
        "vit_small_patch14_reg4_dinov2": ((384, 384, 384), (14, 14, 14)),
    }


@pytest.mark.parametrize("compiled", [False, True])
def test_relu6_and_its_gradient_at_the_corners(compiled: bool) -> None:
    inputs = torch.tensor([-1.0, -0.0, 0.0, 1e-6, 3.0, 5.999, 6.0, 7.0, float("nan")])
    function = torch.compile(relu6_, fullgraph=True, backend="aot_eager") if compiled else relu6_
    leaf = inputs.clone().requires_grad_()
    output = function(leaf * 1)  # it may overwrite what it is given
    slope = torch.autograd.grad(output, leaf, torch.arange(1.0, 10.0))[0]
    expected = torch.tensor([0, 0, 0, 1e-6, 3, 5.999, 6, 6, float("nan")])
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
    assert slope.tolist() == [0, 0, 0, 4, 5, 6, 0, 0, 9]  # that of a NaN passes: nothing hides it
