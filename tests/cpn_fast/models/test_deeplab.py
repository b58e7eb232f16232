"""DeepLab-LargeFOV: its head against float64, its field of view, what trains, and its batch norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.config.training import TrainConfig
from cpn_fast.models.backbones import Backbone, create_backbone
from cpn_fast.models.deeplab import DeepLab, norm_momentum, set_norm_momentum
from cpn_fast.training.optimizer import parameter_groups

CLASSES = 3


class OneConvolution(Backbone):
    """A backbone of one strided convolution with 6 channels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.channels, self.strides = (6, 6, 6), (stride, stride, stride)
        self.conv = nn.Conv2d(3, 6, 3, stride, 1)
        self.initialise(frozen=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        final = self.conv(x)
        return final, final, final


def views(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def build(name: str = "resnet38_tiny", dropout: float = 0.5) -> DeepLab:
    torch.manual_seed(0)
    return DeepLab(create_backbone(name, frozen=False), CLASSES, dropout)


@pytest.mark.parametrize(
    ("backbone", "grid"), [("resnet38_tiny", (6, 9)), ("mobilenet_v2", (3, 5)), ("mobilenet_v2_stride8", (6, 9))]
)
def test_one_map_per_class_and_background_on_the_grid_of_the_backbone(backbone: str, grid: tuple[int, int]) -> None:
    net = build(backbone).eval()
    with torch.no_grad():
        logits = net(views(2, 41, 70))
    assert logits.shape == (2, CLASSES + 1, *grid)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("stride", "dilation"), [(8, 12), (16, 6), (32, 3)])
def test_taps_lie_96_pixels_apart_at_every_stride(stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    net = DeepLab(OneConvolution(stride), CLASSES).eval()
    final = torch.zeros(1, 6, 33, 33, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.conv_fov(final)[0, :, 16, 16].sum(), final)
    rows, columns = (gradient[0].abs().sum(dim=0) > 0).nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == [16 - dilation, 16, 16 + dilation]
    assert stride * dilation == 96


@pytest.mark.parametrize("training", [False, True])
def test_head_against_plain_layers_in_float64(training: bool) -> None:
    torch.manual_seed(0)
    net = DeepLab(OneConvolution(8), CLASSES, dropout=0.0).train(training)
    generator = torch.Generator().manual_seed(2)
    for norm in (net.norm_fov, net.norm_mix):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.copy_(torch.rand(512, generator=generator) + 0.3)
    net.classifier.bias.data.normal_(generator=generator)
    image = views(2, 64, 96)
    state = {name: value.double() for name, value in net.state_dict().items()}

    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance = (state[f"{name}.running_{what}"] for what in ("mean", "var"))
        if training:
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
        scale = state[f"{name}.weight"] / (variance + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    x = F.conv2d(image.double(), state["backbone.conv.weight"], state["backbone.conv.bias"], 8, 1)
    x = normed(F.conv2d(x, state["conv_fov.weight"], padding=12, dilation=12), "norm_fov")
    x = normed(F.conv2d(x, state["conv_mix.weight"]), "norm_mix")
    expected = F.conv2d(x, state["classifier.weight"], state["classifier.bias"])
    torch.testing.assert_close(net(image).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet38_tiny", "mobilenet_v2_stride8"])
def test_every_layer_trains_and_every_batch_norm_moves(backbone: str) -> None:
    net = build(backbone).train()
    before = {name: value.clone() for name, value in net.named_buffers() if name.endswith("running_mean")}
    net(views(2, 64, 64)).square().mean().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not still
    assert all(p.grad.abs().sum() > 0 for name, p in net.named_parameters() if name.endswith("conv_fov.weight"))
    unmoved = [name for name, value in net.named_buffers() if name in before and torch.equal(value, before[name])]
    assert not unmoved


def test_dilated_depthwise_layers_train_with_torchs_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from cpn_fast.models.backbones import depthwise

    image, found = views(2, 48, 48).double(), []
    for own in (True, False):
        if not own:
            monkeypatch.setattr(depthwise, "_slow_backward", lambda *_: False)
        net = build("mobilenet_v2_stride8", dropout=0.0).double().train()
        if own:
            layer = net.backbone.get_submodule("features.8.conv")[1]
            assert "_DepthwiseBackward" in graph_names(layer(torch.randn(1, 384, 5, 5).double()))
        net(image).square().mean().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-8, atol=1e-12, msg=name)


def graph_names(output: Tensor) -> set[str]:
    names, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(type(node).__name__)
            waiting += [following for following, _ in node.next_functions]
    return names


def test_learning_rates_of_backbone_head_and_biases(tmp_path) -> None:
    net = build()
    groups = {g["name"]: g for g in parameter_groups(net, TrainConfig(data="demo:", output=tmp_path))}
    assert {name: group["factor"] for name, group in groups.items()} == {
        "backbone": 1, "backbone biases": 1, "head": 10, "head biases": 20,
    }  # fmt: skip
    assert groups["head biases"]["weight_decay"] == 0
    head = {id(p) for name in ("head", "head biases") for p in groups[name]["params"]}
    layers = (net.conv_fov, net.norm_fov, net.conv_mix, net.norm_mix, net.classifier)
    assert head == {id(p) for layer in layers for p in layer.parameters()}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(net.parameters()))


def test_dropout_acts_in_training_alone() -> None:
    net = build(dropout=0.5)
    image = views(1, 64, 64)
    net.eval()
    assert torch.equal(net(image), net(image))
    net.train()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    torch.manual_seed(0)
    assert not torch.equal(net(image), net(image))


def test_norms_of_backbone_and_head_have_the_papers_momentum_or_the_one_that_is_set() -> None:
    net = build()

    def momenta() -> set[float | None]:
        return {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)}

    assert momenta() == {3e-4}
    set_norm_momentum(net, 0.02)
    assert momenta() == {0.02}


@pytest.mark.parametrize("steps", [1, 30, 300, 5_000, 19_999])
def test_a_shorter_training_forgets_the_initial_statistics_as_the_papers_does(steps: int) -> None:
    assert (1 - norm_momentum(steps)) ** steps == pytest.approx((1 - 3e-4) ** 20_000, rel=1e-6)
    assert 3e-4 < norm_momentum(steps) < 1


def test_momentum_of_long_trainings() -> None:
    assert norm_momentum(20_000) == norm_momentum(80_000) == pytest.approx(3e-4)


def test_a_frozen_backbone_or_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="frozen=False"):
        DeepLab(create_backbone("resnet38_tiny"), 3)
    with pytest.raises(ValueError, match="num_classes is 0"):
        DeepLab(create_backbone("resnet38_tiny", frozen=False), 0)
