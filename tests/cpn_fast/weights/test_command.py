"""`cpn weights check` on files made here, whose content is known."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cpn_fast.cli.main import main as cpn
from cpn_fast.files.errors import DataError
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.cam import CamNet
from cpn_fast.models.weights.pretrained import load_backbone_weights
from cpn_fast.weights.command import check_weights


def test_an_imagenet_classifier_behind_a_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mobilenet.pth.tar"
    state = create_backbone("mobilenet_v2").state_dict() | {"classifier.1.weight": torch.ones(7, 1280)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    assert cpn(["weights", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert hashlib.sha256(path.read_bytes()).hexdigest() in said
    assert "MobileNetV2 1.0 in torchvision's keys" in said and "classes     7" in said and "prefix      module." in said
    assert f"--backbone mobilenet_v2 or mobilenet_v2_stride8 --weights {path}" in said
    assert f"{2_223_872 + 7 * 1280 + 2 * 17_056:,} parameters" in said  # torchvision's, the head, running statistics


def test_a_run_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = CamNet(create_backbone("resnet38_tiny"), 3, "pcm").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    report = check_weights(tmp_path / "model.safetensors")
    assert report.fit is not None and report.fit.exact and report.fit.prefix == "backbone." and report.classes == 3
    assert not report.seam
    del state["backbone.bn7.bias"]
    state["backbone.bn7.weight"] = torch.ones(5)
    save_file(state | {"backbone.b9.weight": torch.ones(1)}, tmp_path / "less.safetensors")
    assert cpn(["weights", "check", str(tmp_path / "less.safetensors")]) == 0
    said = capsys.readouterr().out
    for line in ("missing     1: bn7.bias", "misshapen   1: bn7.weight", "unexpected  1: b9.weight"):
        assert line in said
    assert "--weights" not in said


def test_weights_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"encoder.0.kernel": torch.ones(3)}, tmp_path / "other.safetensors")
    assert check_weights(tmp_path / "other.safetensors").fit is None
    assert cpn(["weights", "check", str(tmp_path / "other.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "of no backbone of this package" in said and "no classifier" in said
    save_file({"a": torch.full((2,), float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match="NaN"):
        check_weights(tmp_path / "nan.safetensors")


def test_a_checkpoint_of_seam(tmp_path: Path) -> None:
    state = create_backbone("resnet38_tiny").state_dict()
    torch.save(
        state | {"fc8.weight": torch.ones(21, 512, 1, 1), "f9.weight": torch.ones(192, 195, 1, 1)}, tmp_path / "s.pth"
    )
    report = check_weights(tmp_path / "s.pth")
    assert report.seam and report.classes == 21 and report.fit is not None
    assert report.fit.backbone == "resnet38_tiny" and set(report.fit.unexpected) == {"fc8.weight", "f9.weight"}


def test_dinov2_in_its_own_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There the class token has a position of its own, and there is a token for hidden patches."""
    theirs = {
        key: value.detach() for key, value in create_backbone("vit_small_patch14_reg4_dinov2").state_dict().items()
    }
    theirs["register_tokens"], patches = theirs.pop("reg_token"), theirs["pos_embed"]
    theirs |= {
        "pos_embed": torch.cat([torch.full((1, 1, 384), 0.25), patches], dim=1),
        "mask_token": torch.ones(1, 384),
    }
    path = tmp_path / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(theirs, path)
    assert cpn(["weights", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "DINOv2's ViT-S/14 with registers" in said and "no classifier" in said
    assert f"--backbone vit_small_patch14_reg4_dinov2 --weights {path}" in said
    backbone = create_backbone("vit_small_patch14_reg4_dinov2")
    load_backbone_weights(backbone, path)
    loaded = backbone.state_dict()
    assert torch.equal(loaded["reg_token"], theirs["register_tokens"]) and torch.equal(loaded["pos_embed"], patches)
    assert torch.equal(loaded["cls_token"], theirs["cls_token"] + 0.25)
    assert torch.equal(loaded["blocks.11.ls2.gamma"], theirs["blocks.11.ls2.gamma"])


def test_a_vision_transformer_with_its_classifier(tmp_path: Path) -> None:
    state = create_backbone("vit_small_patch16").state_dict()
    state |= {"head.weight": torch.ones(9, 384), "head.bias": torch.ones(9)}
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "w.safetensors")
    report = check_weights(tmp_path / "w.safetensors")
    assert report.fit is not None and report.fit.exact and report.classes == 9
    assert report.fit.names == ("vit_small_patch16", "deit_small_patch16")


@pytest.mark.data("weights")
@pytest.mark.parametrize(
    ("name", "backbone"),
    [("mobilenet_v2_imagenet", "mobilenet_v2"), ("tf_efficientnet_lite2_imagenet", "efficientnet_lite2")],
)
def test_the_public_files(name: str, backbone: str) -> None:
    report = check_weights(Path(os.environ["CPN_TEST_DATA"]) / "weights" / f"{name}.safetensors")
    assert report.fit is not None and report.fit.exact and report.fit.backbone == backbone and report.classes == 1000
