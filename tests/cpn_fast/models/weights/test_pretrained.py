"""Weights files of every kind, into the right places, and refused with a full list when they do not fit."""

from __future__ import annotations

import logging
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from cpn_fast.files.errors import DataError
from cpn_fast.models.backbones import FeatureBackbone, create_backbone
from cpn_fast.models.cam import CamNet
from cpn_fast.models.weights.pretrained import (
    load_backbone_weights,
    load_seam_checkpoint,
    read_seam_checkpoint,
    read_weights,
)
from tests.cpn_fast.models.backbones.pyramids import Pyramid

DATA = Path(os.environ.get("CPN_TEST_DATA", "no test data"))
MOBILENET = DATA / "weights" / "mobilenet_v2_imagenet.safetensors"
LITE2 = DATA / "weights" / "tf_efficientnet_lite2_imagenet.safetensors"
COCO_MINI = DATA / "coco_mini"
needs_weights = pytest.mark.data("weights/mobilenet_v2_imagenet.safetensors")

State = dict[str, Tensor]


def tiny_state(seed: int = 5) -> State:
    """Weights of a resnet38_tiny, all of them random, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in create_backbone("resnet38_tiny").state_dict().items()}
    return {
        key: torch.rand(shape, generator=generator) + 0.5
        if len(shape) == 1
        else torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    }


def features_of(state: State) -> tuple[Tensor, ...]:
    backbone = create_backbone("resnet38_tiny").eval()
    backbone.load_state_dict(state, strict=False)
    return forward(backbone)


def forward(backbone: torch.nn.Module) -> tuple[Tensor, ...]:
    x = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return backbone.eval()(x)


def mxnet_name(key: str) -> str:
    """The name in the .params file: b5_1.bn_branch2a.weight -> arg:bn5b1_branch2a_gamma."""
    field = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    prefix = "aux:" if "running_" in key else "arg:"
    if key == "conv1a.weight":
        return "arg:conv1a_weight"
    if key.startswith("bn7."):
        return f"{prefix}bn7_{field[key[4:]]}"
    block, layer, last = key.split(".")
    stage, _, index = block[1:].partition("_")
    kind, branch = layer.split("_")
    suffix = f"b{index}" if index else "a"
    if kind == "conv":
        return f"arg:res{stage}{suffix}_{branch}_weight"
    return f"{prefix}bn{stage}{suffix}_{branch}_{field[last]}"


def write_params(path: Path, arrays: dict[str, np.ndarray], version: str) -> Path:
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        dims = array.shape
        if version == "v2":
            content += struct.pack(f"<Iii{len(dims)}q", 0xF993FAC9, 0, len(dims), *dims)
        elif version == "v1":
            content += struct.pack(f"<Ii{len(dims)}q", 0xF993FAC8, len(dims), *dims)
        else:
            content += struct.pack(f"<I{len(dims)}I", len(dims), *dims)
        code = {"float32": 0, "float64": 1, "int8": 5}[array.dtype.name]
        content += struct.pack("<iii", 1, 0, code) + array.tobytes()
    content += struct.pack("<Q", len(arrays))
    for name in arrays:
        content += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", ["v2", "v1", "oldest"])
def test_resnet38_from_params_gives_bit_equal_forwards(tmp_path: Path, version: str) -> None:
    state = tiny_state()
    arrays = {mxnet_name(key): value.numpy() for key, value in state.items()}
    arrays["arg:linear1000_weight"] = np.ones((1000, 512), np.float32)
    arrays["arg:linear1000_bias"] = np.ones(1000, np.float32)
    assert {"arg:res4b5_branch2b1_weight", "aux:bn6a_branch2b2_moving_var", "arg:res7a_branch1_weight"} <= arrays.keys()
    backbone = create_backbone("resnet38_tiny")
    skipped = load_backbone_weights(backbone, write_params(tmp_path / "w.params", arrays, version))
    assert skipped == ("linear1000_weight", "linear1000_bias")
    assert all(torch.equal(a, b) for a, b in zip(forward(backbone), features_of(state), strict=True))


def test_params_in_double_are_cast(tmp_path: Path) -> None:
    state = tiny_state()
    arrays = {mxnet_name(key): value.double().numpy() for key, value in state.items()}
    backbone = create_backbone("resnet38_tiny")
    load_backbone_weights(backbone, write_params(tmp_path / "w.params", arrays, "v2"))
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "-wrapped.pth", "-parallel.pth", ".pth.tar"])
def test_heads_are_passed_over_and_logged_and_counters_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    state = tiny_state()
    extra = {
        "fc.weight": torch.ones(3),
        "classifier.1.bias": torch.ones(2),
        "b2.bn_branch2a.num_batches_tracked": torch.tensor(4),
    }
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state | extra, path)
    elif suffix == "-wrapped.pth":
        torch.save({"state_dict": state | extra, "epoch": 3}, path)
    elif suffix == ".pth.tar":  # as the training scripts of many papers write them
        content = {f"module.model._orig_mod.{key}": value for key, value in (state | extra).items()}
        torch.save({"epoch": 3, "state_dict": content, "best": torch.tensor(0.5)}, path)
    elif suffix == "-parallel.pth":
        torch.save({f"module.{key}": value for key, value in (state | extra).items()}, path)
    else:
        torch.save(state | extra, path)
    backbone = create_backbone("resnet38_tiny")
    with caplog.at_level(logging.INFO):
        skipped = load_backbone_weights(backbone, path)
    assert set(skipped) == set(extra)
    assert ("begin with 'module.model.'" in caplog.text) == (suffix == ".pth.tar")
    assert all((key in caplog.text) == (not key.endswith("num_batches_tracked")) for key in extra)
    assert "skipped 2 keys" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(forward(backbone), features_of(state), strict=True))


def test_the_backbone_of_a_run_is_taken(tmp_path: Path) -> None:
    state = tiny_state()
    net = CamNet(create_backbone("resnet38_tiny"), 3, "pcm")
    net.backbone.load_state_dict(state, strict=False)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    backbone = create_backbone("resnet38_tiny").eval()
    skipped = load_backbone_weights(backbone, tmp_path / "model.safetensors")
    assert {"mean", "classifier.weight", "f9.weight"} <= set(skipped)
    for ours, theirs in zip(forward(backbone), features_of(state), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(DataError, match="holds the weights of resnet38_tiny, expected those of ResNet50"):
        load_backbone_weights(create_backbone("resnet50"), tmp_path / "model.safetensors")


def test_every_missing_unexpected_and_misshapen_key_is_listed(tmp_path: Path) -> None:
    state = tiny_state()
    del state["b2.bn_branch2a.bias"], state["bn7.weight"]
    state |= {"fc8.weight": torch.ones(1), "b9.conv.weight": torch.ones(1), "conv1a.weight": torch.ones(8, 3, 5, 5)}
    state["bn7.bias"] = state["bn7.bias"].to(torch.int8)
    save_file(state, tmp_path / "w.safetensors")
    backbone = create_backbone("resnet38_tiny")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(DataError) as caught:
        load_backbone_weights(backbone, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert str(tmp_path / "w.safetensors") in message and "ResNet38" in message
    assert "2 missing: b2.bn_branch2a.bias, bn7.weight" in message
    assert re.search(r"2 unexpected: (fc8.weight, b9.conv.weight|b9.conv.weight, fc8.weight)", message)
    assert "1 misshapen: conv1a.weight (found [8, 3, 5, 5], expected [8, 3, 3, 3])" in message
    assert "1 not floating point: bn7.bias (torch.int8)" in message
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "model.backbone.module."])
def test_prefixes_are_taken_off_and_what_has_none_is_skipped(tmp_path: Path, prefix: str) -> None:
    state, path = tiny_state(), tmp_path / "w.safetensors"
    beside = {} if prefix == "_orig_mod." else {"decode_head.weight": torch.ones(3)}
    save_file({f"{prefix}{key}": value for key, value in state.items()} | beside, path)
    backbone = create_backbone("resnet38_tiny")
    assert load_backbone_weights(backbone, path) == tuple(beside)
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in state.items())


def test_weights_of_another_backbone_say_of_which(tmp_path: Path) -> None:
    state = create_backbone("mobilenet_v2").state_dict()
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"of mobilenet_v2, .* --backbone mobilenet_v2 or mobilenet_v2_stride8"):
        load_backbone_weights(create_backbone("resnet38_tiny"), tmp_path / "w.safetensors")


def test_a_whole_network_of_timm_goes_into_its_features(tmp_path: Path) -> None:
    """timm's wrapper says stages_0 where the network says stages.0; its head, and stages not asked for, are skipped."""
    given = {key: torch.rand_like(value) for key, value in Pyramid().state_dict().items() if value.is_floating_point()}
    whole = {key.replace("stages_", "stages."): value for key, value in given.items()}
    whole |= {"stages.4.0.weight": torch.ones(3), "head.fc.weight": torch.ones(10, 4)}
    save_file(whole, tmp_path / "timm.safetensors")
    backbone = FeatureBackbone(Pyramid())
    assert set(load_backbone_weights(backbone, tmp_path / "timm.safetensors")) == {
        "stages.4.0.weight",
        "head.fc.weight",
    }
    assert all(torch.equal(backbone.body.state_dict()[key], value) for key, value in given.items())
    # and so does the network of a run
    save_file({f"backbone.body.{key}": value for key, value in given.items()}, tmp_path / "model.safetensors")
    other = FeatureBackbone(Pyramid())
    load_backbone_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(other.body.state_dict()[key], value) for key, value in given.items())
    save_file({key: value for key, value in whole.items() if "stages.2" not in key}, tmp_path / "less.safetensors")
    with pytest.raises(DataError, match=r"6 missing: stages\.2\.0\.weight"):
        load_backbone_weights(other, tmp_path / "less.safetensors")


def test_two_names_for_one_key_are_refused(tmp_path: Path) -> None:
    arrays = {name: np.ones(4, np.float32) for name in ("arg:bn7_gamma", "aux:bn7_gamma")}
    with pytest.raises(DataError, match=r"'arg:bn7_gamma' and 'aux:bn7_gamma' both mean 'bn7.weight'"):
        read_weights(write_params(tmp_path / "w.params", arrays, "v2"))


class Unsafe:
    """Something that a pickle could hold and weights never do."""


@pytest.mark.parametrize("suffix", [".params", ".pth", ".safetensors"])
def test_missing_damaged_and_foreign_files_are_data_errors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    with pytest.raises(DataError, match=r"no such weights file"):
        read_weights(path)
    for content in (b"", b"<html>not found</html>", bytes(100), b"\x80\x02}q\x00" + bytes(30)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_weights(path)


def test_a_cut_pth_and_one_with_objects_are_refused(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "w.pth"
    torch.save({"a": torch.ones(1000)}, whole)
    path.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(DataError, match="not a readable PyTorch weights file"):
        read_weights(path)
    torch.save({"a": Unsafe()}, path)
    with pytest.raises(DataError, match="holds more than tensors"):
        read_weights(path)
    torch.save({"a": torch.ones(1), "epoch": 3}, path)
    with pytest.raises(DataError, match="expected a state_dict"):
        read_weights(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(DataError, match="holds a list"):
        read_weights(path)


def test_an_unknown_suffix_names_the_known(tmp_path: Path) -> None:
    path = tmp_path / "w.onnx"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"'\.onnx'; expected \.params, \.pth or \.safetensors"):
        read_weights(path)


# --- SEAM / psa -------------------------------------------------------------------------------------------------------


def seam_state(rows: int) -> State:
    """SEAM's checkpoint, at resnet38_tiny's widths: final 512, mid 64, high 128 channels."""
    generator = torch.Generator().manual_seed(2)
    shapes = {"fc8": (rows, 512, 1, 1), "f8_3": (64, 64, 1, 1), "f8_4": (128, 128, 1, 1), "f9": (192, 195, 1, 1)}
    heads = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tiny_state() | heads | {"bn7.num_batches_tracked": torch.tensor(1)}


@pytest.mark.parametrize("rows", [4, 5])
def test_seam_heads_go_to_their_places(tmp_path: Path, rows: int) -> None:
    state = seam_state(rows)
    torch.save(state, tmp_path / "seam.pth")
    backbone, heads = read_seam_checkpoint(tmp_path / "seam.pth", num_classes=4)
    assert backbone.keys() == tiny_state().keys()
    assert heads.keys() == {"classifier.weight", "f_mid.weight", "f_high.weight", "f9.weight"}
    # SEAM's first row of five is background
    assert torch.equal(heads["classifier.weight"], state["fc8.weight"][-4:])
    net = CamNet(create_backbone("resnet38_tiny"), 4, "prcm").eval()
    load_seam_checkpoint(net, tmp_path / "seam.pth")
    for ours, theirs in (("f_mid", "f8_3"), ("f_high", "f8_4"), ("f9", "f9")):
        assert torch.equal(net.get_parameter(f"{ours}.weight"), state[f"{theirs}.weight"])
    assert torch.equal(net.phi.weight, state["f9.weight"].flatten(1))
    x = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        final = forward_final(x)
        expected = torch.einsum("kc,bchw->bkhw", state["fc8.weight"][-4:, :, 0, 0], final)
        torch.testing.assert_close(net(x).cam, expected, rtol=1e-4, atol=1e-3 * expected.abs().max().item())


def forward_final(x: Tensor) -> Tensor:
    backbone = create_backbone("resnet38_tiny").eval()
    backbone.load_state_dict(tiny_state(), strict=False)
    return backbone(x)[2]


def test_psa_classifier_alone_serves_a_net_without_refinement(tmp_path: Path) -> None:
    state = tiny_state() | {"fc8.weight": seam_state(4)["fc8.weight"]}
    torch.save(state, tmp_path / "psa.pth")
    net = CamNet(create_backbone("resnet38_tiny"), 4, "none")
    load_seam_checkpoint(net, tmp_path / "psa.pth")
    assert torch.equal(net.classifier.weight, state["fc8.weight"])
    with pytest.raises(DataError, match=r"f_mid\.weight \(found nothing, expected \[64, 64, 1, 1\]\)"):
        load_seam_checkpoint(CamNet(create_backbone("resnet38_tiny"), 4, "pcm"), tmp_path / "psa.pth")


def test_seam_heads_that_the_net_has_not_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(seam_state(5), tmp_path / "seam.pth")
    with caplog.at_level(logging.INFO):
        load_seam_checkpoint(CamNet(create_backbone("resnet38_tiny"), 4, "none"), tmp_path / "seam.pth")
    assert "f9.weight, f_high.weight, f_mid.weight" in caplog.text


def test_seam_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "seam.pth"
    torch.save(tiny_state(), path)
    with pytest.raises(DataError, match=r"no key fc8\.weight"):
        read_seam_checkpoint(path, 4)
    torch.save(seam_state(21), path)
    with pytest.raises(DataError, match=r"for 21 classes, expected 4"):
        read_seam_checkpoint(path, 4)
    torch.save(seam_state(5) | {"f8_5.weight": torch.ones(1)}, path)
    with pytest.raises(DataError, match=r"1 unexpected: f8_5\.weight"):
        load_seam_checkpoint(CamNet(create_backbone("resnet38_tiny"), 4, "pcm"), path)


# --- the real MobileNetV2 ---------------------------------------------------------------------------------------------


@needs_weights
def test_mobilenet_weights_fit_exactly() -> None:
    backbone = create_backbone("mobilenet_v2")
    assert set(load_backbone_weights(backbone, MOBILENET)) == {"classifier.1.weight", "classifier.1.bias"}
    stored = load_file(MOBILENET)
    for key, value in backbone.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, stored[key])


@pytest.mark.data("weights/tf_efficientnet_lite2_imagenet.safetensors")
@pytest.mark.parametrize("name", ["efficientnet_lite2", "efficientnet_lite2_stride8"])
def test_efficientnet_lite2_weights_fit_exactly(name: str) -> None:
    stored = load_file(LITE2)
    backbone = create_backbone(name)
    skipped = load_backbone_weights(backbone, LITE2)
    assert {key for key in skipped if not key.endswith("tracked")} == {"classifier.weight", "classifier.bias"}
    held = {key: value for key, value in backbone.state_dict().items() if not key.endswith("tracked")}
    assert len(held) == 386 - 2 - sum(key.endswith("tracked") for key in stored)
    assert all(torch.equal(value, stored[key]) for key, value in held.items())
    assert backbone.has_statistics()


@needs_weights
def test_mobilenet_weights_in_another_backbone_are_refused() -> None:
    with pytest.raises(DataError, match=r"holds the weights of mobilenet_v2, expected those of ResNet38; give"):
        load_backbone_weights(create_backbone("resnet38_tiny"), MOBILENET)


@needs_weights
@pytest.mark.data("coco_mini")
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite2"])
def test_dogs_and_birds_are_recognised(name: str) -> None:
    """ImageNet's classes 151..268 are dogs, 7..24 and 80..100 and 127..146 birds; chance is one in ten."""
    path, head = (MOBILENET, "classifier.1") if name == "mobilenet_v2" else (LITE2, "classifier")
    backbone = create_backbone(name).eval()
    load_backbone_weights(backbone, path)
    stored = load_file(path)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    birds = {*range(7, 25), *range(80, 101), *range(127, 147)}
    right = []
    for annotation in sorted((COCO_MINI / "Annotations").glob("*.xml")):
        names = set(re.findall(r"<name>(.*?)</name>", annotation.read_text()))
        if names not in ({"dog"}, {"bird"}):
            continue
        with Image.open(COCO_MINI / "JPEGImages" / f"{annotation.stem}.jpg") as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
        with torch.no_grad():
            pooled = backbone(((pixels - mean) / std).permute(2, 0, 1)[None])[2].mean((2, 3))
        best = (pooled @ stored[f"{head}.weight"].T + stored[f"{head}.bias"]).argmax().item()
        right.append(best in (birds if names == {"bird"} else range(151, 269)))
    assert len(right) >= 10 and sum(right) / len(right) >= 0.6


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    backbone = create_backbone("resnet38_tiny")
    state = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    name = next(key for key, tensor in state.items() if tensor.dim() == 4)
    state[name].view(-1)[-1] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        DataError, match=rf"w\.pth: {name} of \d+ tensors hold NaN or infinity: the training that wrote"
    ):
        load_backbone_weights(backbone, tmp_path / "w.pth")
