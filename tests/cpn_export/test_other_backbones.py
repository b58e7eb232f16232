"""Networks that come in by `timm:NAME` and `package.module:function` leave with the parity of the others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] packages")

from torch import Tensor, nn  # noqa: E402

from cpn_export.agreement import Agreement  # noqa: E402
from cpn_export.parity import Pair  # noqa: E402
from cpn_export.runtime import label_rows  # noqa: E402
from cpn_export.to_onnx import ExportConfig, run_export  # noqa: E402
from cpn_fast.config.backbones import TRUSTED, trust_backbone  # noqa: E402
from cpn_fast.config.training import AugmentOptions, TrainConfig  # noqa: E402
from cpn_fast.models import create_model  # noqa: E402
from cpn_fast.runs.folder import RunFolder  # noqa: E402
from tests.cpn_export.conftest import TRAINED_CLASSES, shapes_image  # noqa: E402
from tests.cpn_export.test_compare_precisions import REDUCED  # noqa: E402
from tests.cpn_fast.models.backbones.pyramids import FeatureInfo, Pyramid  # noqa: E402

pytestmark = pytest.mark.slow

SHAPES = ((2, 64, 96), (1, 75, 101), (1, 33, 150))
"""Images, height and width; sides that the strides do not divide among them."""


class Modern(nn.Module):
    """A small ConvNeXt: depthwise 7 x 7, layer norm over the channels, GELU, a residual, gains of each channel."""

    def __init__(self) -> None:
        super().__init__()
        channels = (16, 24, 32)
        self.feature_info = FeatureInfo(channels, (4, 8, 16))
        self.down, self.blocks = nn.ModuleList(), nn.ModuleList()
        for before, after, step in zip((3, *channels), channels, (4, 2, 2), strict=False):
            self.down.append(nn.Conv2d(before, after, step, step))
            parts = {
                "depthwise": nn.Conv2d(after, after, 7, padding=3, groups=after), "norm": nn.LayerNorm(after),
                "wide": nn.Linear(after, 4 * after), "narrow": nn.Linear(4 * after, after),
            }  # fmt: skip
            self.blocks.append(nn.ModuleDict(parts))
        self.gains = nn.ParameterList(torch.full((width,), 0.5) for width in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for down, block, gain in zip(self.down, self.blocks, self.gains, strict=True):
            x = down(x)
            inner = block["norm"](block["depthwise"](x).permute(0, 2, 3, 1))
            inner = gain * block["narrow"](nn.functional.gelu(block["wide"](inner)))
            x = x + inner.permute(0, 3, 1, 2)
            maps.append(x)
        return maps


class Timm:
    """The one function of timm that is called."""

    def create_model(self, name: str, **options: Any) -> nn.Module:
        assert options["features_only"] and name == "convnext_small_one"
        return Modern()


@pytest.fixture(params=["timm:convnext_small_one", f"{Pyramid.__module__}:build"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Untrained weights, of which every channel says something."""
    monkeypatch.setitem(sys.modules, "timm", Timm())  # type: ignore[arg-type]
    monkeypatch.setenv(TRUSTED, "")
    trust_backbone(request.param)
    config = TrainConfig("unused", tmp_path / "run", backbone=request.param, augment=AugmentOptions(crop=64))
    run = RunFolder(config.output)
    config.output.mkdir()
    run.create(config, TRAINED_CLASSES)
    torch.manual_seed(3)
    run.save_model(create_model(config, len(TRAINED_CLASSES), load_weights=False), 0)
    return run


def compared(pair: Pair) -> tuple[Agreement, float]:
    """Agreement over the shapes; the norm of the maps' difference relative to that of the maps."""
    found, moved, whole = Agreement(), 0.0, 0.0
    for shape in SHAPES:
        random = np.random.default_rng(shape[1])
        images, labels = zip(*(shapes_image(random, *shape[1:]) for _ in range(shape[0])), strict=True)
        rows = label_rows(labels, len(TRAINED_CLASSES))
        eager, exported = pair.run_eager(np.stack(images), rows), pair.run_onnx(np.stack(images), rows)
        found.add(eager, exported, shape[0])
        moved += float(np.square(exported.maps - eager.maps).sum())
        whole += float(np.square(eager.maps).sum())
    assert found.foreground > 0.1 * found.pixels, "masks without foreground prove little"
    return found, (moved / whole) ** 0.5


def test_parity_in_float32_float16_and_int8(run: RunFolder, shapes_folder: Path, tmp_path: Path) -> None:
    def exported(precision: str, **more: Any) -> Pair:
        path = tmp_path / f"{precision}.onnx"
        model = run_export(ExportConfig(run.path, path, (1.0,), flip=False, beta=0.3, precision=precision, **more))  # type: ignore[arg-type]
        return Pair.of_run(run, model, threads=1)

    whole = exported("float32")
    assert whole.onnx.info.backbone == run.config.backbone
    agreement, moved = compared(whole)
    assert agreement.met and moved < 1e-3, (agreement, moved)
    calibration = {"calibrate": shapes_folder, "calibrate_images": 6, "reduce_range": REDUCED}
    for precision, more, equal, most in (("float16", {}, 0.99, 0.02), ("int8", calibration, 0.9, 0.2)):
        pair = exported(precision, **more)
        assert pair.onnx.info.precision == precision
        agreement, moved = compared(pair)
        assert agreement.pixels_equal > equal and 0 < moved < most, (precision, agreement, moved)
