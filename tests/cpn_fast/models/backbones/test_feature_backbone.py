"""Other people's networks as backbones: by `FeatureBackbone`, `timm:NAME` and `package.module:function`."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cpn_fast.files.errors import DataError
from cpn_fast.models.backbones import FeatureBackbone, create_backbone
from cpn_fast.models.cam import CamNet
from tests.cpn_fast.models.backbones.pyramids import FeatureInfo, Pyramid, build

OWN = f"{Pyramid.__module__}:build"


@pytest.mark.parametrize(
    ("reduction", "picked"),
    [
        ((4, 8, 16, 32), (1, 2, 3)),
        ((4, 8, 16, 16), (1, 2, 3)),
        ((2, 4, 8, 16, 32), (2, 3, 4)),
        ((2, 4, 8, 8, 8), (2, 3, 4)),
        ((8, 16), (0, 0, 1)),
        ((16, 32, 32), (0, 1, 2)),
        ((8,), (0, 0, 0)),
    ],
)
def test_mid_high_and_final_are_picked_by_stride(reduction: tuple[int, ...], picked: tuple[int, ...]) -> None:
    channels = [10 + index for index in range(len(reduction))]
    backbone = FeatureBackbone(Pyramid(channels, reduction))
    assert backbone.picked == picked
    assert backbone.channels == tuple(channels[index] for index in picked)
    assert backbone.strides == tuple(reduction[index] for index in picked)


@pytest.mark.parametrize(("height", "width"), [(64, 48), (33, 49), (7, 16)])
def test_maps_are_those_of_the_image_padded_with_its_mean_colour(height: int, width: int) -> None:
    module = build().eval()
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    padded = torch.zeros(2, 3, -(-height // 16) * 16, -(-width // 16) * 16)
    padded[:, :, :height, :width] = x
    with torch.no_grad():
        _, mid, high, final = module(padded)
        found = FeatureBackbone(module).eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(found, (mid, high, final), strict=True))
    assert found[2].shape == (2, 10, -(-height // 16), -(-width // 16))


def test_weights_stay_and_batch_norms_freeze() -> None:
    module, before = build(), build().state_dict()
    frozen = FeatureBackbone(module).train()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert {key for key, p in module.named_parameters() if not p.requires_grad} == {
        f"stages_{index}.1.{name}" for index in range(4) for name in ("weight", "bias")
    }
    frozen(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    free = FeatureBackbone(build(), frozen=False).train()
    assert all(p.requires_grad for p in free.parameters()) and all(norm.training for norm in free.batch_norms())


def test_a_network_without_batch_norms_is_not_one_whose_norms_were_folded() -> None:
    assert FeatureBackbone(Stated([8], [8])).has_statistics()
    assert not FeatureBackbone(build()).has_statistics()


class Stated(nn.Module):
    """Gives one map of 8 channels at stride 8 and says whatever it is told to."""

    def __init__(self, channels: list[int], reduction: list[int], form: type = list) -> None:
        super().__init__()
        self.feature_info = FeatureInfo(channels, reduction)
        self.conv, self.form = nn.Conv2d(3, 8, 8, 8), form

    def forward(self, x: Tensor) -> Any:
        feature = self.conv(x)
        return self.form([feature]) if self.form is not dict else {"a": feature}


class FixedSize(Stated):
    """Takes images of 224 pixels only, as a ViT does."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[2:] != (224, 224):
            raise AssertionError("Input height doesn't match model (224)")
        return super().forward(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 8, 3), "Conv2d cannot be a backbone .*features_only=True"),
        (Stated([], []), r"channels \[\] and reduction \[\]"),
        (Stated([8, 8], [8]), r"channels \[8, 8\] and reduction \[8\]"),
        (Stated([8], [4]), r"maps of \[\(1, 8, 1, 1\)\], by its feature_info they are \[\(1, 8, 2, 3\)\]"),
        (Stated([9], [8]), r"they are \[\(1, 9, 2, 3\)\]"),
        (Stated([8], [8], dict), "gives a dict"),
        (FixedSize([8], [8]), "of any size"),
    ],
)
def test_a_module_that_is_no_backbone_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureBackbone(module)


# --- by name ----------------------------------------------------------------------------------------------------------


class Timm:
    """The one function of timm that is called."""

    def __init__(self, strides: bool) -> None:
        self.strides, self.calls = strides, []

    def create_model(self, name: str, **options: Any) -> Pyramid:
        self.calls.append((name, options))
        if name != "convnext_tiny":
            raise RuntimeError(f"Unknown model ({name})")
        if "output_stride" in options and not self.strides:
            raise TypeError("unexpected keyword argument 'output_stride'")
        return Pyramid(reduction=(4, 8, 16, options.get("output_stride", 32)))


@pytest.mark.parametrize("strides", [True, False])
def test_a_network_of_timm(monkeypatch: pytest.MonkeyPatch, strides: bool) -> None:
    timm = Timm(strides)
    monkeypatch.setitem(sys.modules, "timm", timm)  # type: ignore[arg-type]
    backbone = create_backbone("timm:convnext_tiny")
    assert isinstance(backbone, FeatureBackbone) and backbone.frozen
    assert backbone.strides == ((8, 16, 16) if strides else (8, 16, 32))
    wanted = {"features_only": True, "pretrained": False}
    assert timm.calls[0] == ("convnext_tiny", wanted | {"output_stride": 16})
    assert timm.calls[1:] == ([] if strides else [("convnext_tiny", wanted)])
    create_backbone("timm:convnext_tiny", pretrained=True)
    assert timm.calls[-1][1]["pretrained"]
    with pytest.raises(DataError, match=r"timm:resnet: timm cannot build it.*Unknown model.*list_models"):
        create_backbone("timm:resnet")


def test_without_timm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DataError, match=r"timm cannot be imported.*pip install timm"):
        create_backbone("timm:convnext_tiny")


def test_a_function_of_ones_own() -> None:
    backbone = create_backbone(OWN, frozen=False)
    assert isinstance(backbone, FeatureBackbone) and not backbone.frozen
    assert all(torch.equal(value, build().state_dict()[key]) for key, value in backbone.body.state_dict().items())


def test_a_backbone_of_ones_own_takes_the_freezing_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> FeatureBackbone:
        return FeatureBackbone(build(), frozen=True)

    monkeypatch.setitem(sys.modules, "own_networks", SimpleNamespace(make=make))  # type: ignore[arg-type]
    for frozen in (True, False):
        backbone = create_backbone("own_networks:make", frozen)
        assert backbone.frozen == frozen
        assert all(norm.training != frozen for norm in backbone.train().batch_norms())
        assert all(p.requires_grad != (frozen and p.ndim == 1) for n, p in backbone.named_parameters() if ".1." in n)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:", "unknown; expected resnet38"),
        (":build", "unknown; expected resnet38"),
        ("no_such_package:build", "module no_such_package cannot be imported.*PYTHONPATH"),
        (".relative:build", "module .relative cannot be imported"),
        (OWN + "er", "has no 'builder'"),
        (OWN.replace("build", "NUMBER"), "NUMBER is a int, expected a function"),
        (OWN.replace("build", "broken"), r"broken\(\) failed \(RuntimeError: no such weights\)"),
        ("collections:OrderedDict", "gives a OrderedDict, expected a torch module"),
        ("torch.nn:Identity", "--backbone torch.nn:Identity: Identity cannot be a backbone"),
    ],
)
def test_what_cannot_be_a_backbone_is_named(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        create_backbone(name)


def test_cams_of_another_peoples_network() -> None:
    torch.manual_seed(0)
    net = CamNet(create_backbone(OWN), 3, "pcm").eval()
    x = torch.randn(1, 3, 40, 64)
    output = net(x)
    assert output.cam.shape == (1, 3, 3, 4)
    with torch.no_grad():
        final = net.backbone(x)[2]
    expected = torch.einsum("kc,bchw->bkhw", net.classifier.weight[:, :, 0, 0], final)
    torch.testing.assert_close(output.cam, expected)
