"""Multi-scale labelling: the exported model in onnxruntime against the same labeller in eager torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.untrained import calibrate
from cpn_export.runtime import OnnxLabeller
from cpn_export.to_onnx import ExportConfig, run_export
from cpn_fast.config.scales import CAM_SCALES
from cpn_fast.config.training import TrainConfig
from cpn_fast.models import create_model
from cpn_fast.models.labeller import Labeller
from cpn_fast.runs.folder import RunFolder

CLASSES, BATCH, BETA = 20, 2, 0.1
HEIGHT, WIDTH = 240, 320
LEAST_EQUAL = 0.999


def smooth_images() -> np.ndarray:
    """uint8 [B, H, W, 3]: coarse noise enlarged, closer to photographs than white noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(BATCH, 3, HEIGHT // 20, WIDTH // 20, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def test_onnx_against_eager(tmp_path: Path, against: Callable[..., float]) -> None:
    config = TrainConfig("demo:", tmp_path / "run", method="cpn", backbone="mobilenet_v2")
    config.output.mkdir()
    run = RunFolder(config.output)
    run.create(config, [f"class {index}" for index in range(CLASSES)])
    torch.manual_seed(0)
    images = smooth_images()
    untrained = create_model(config, CLASSES)
    calibrate(untrained, torch.from_numpy(images))
    run.save_model(untrained, 0)
    model = run_export(ExportConfig(run.path, tmp_path / "model.onnx", beta=BETA))
    exported = OnnxLabeller(model, "cpu", torch.get_num_threads())
    net = run.load_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    eager = Labeller(net, CAM_SCALES, True, BETA)
    labels = np.zeros((BATCH, CLASSES), np.float32)
    labels[:, [0, 3]] = 1

    @torch.inference_mode()
    def label_eager() -> np.ndarray:
        return eager(torch.from_numpy(images), torch.from_numpy(labels)).mask.numpy()

    def label_onnx() -> np.ndarray:
        return exported(images, labels).mask

    def agree() -> None:
        expected, found = label_eager(), label_onnx()
        shares = np.bincount(expected.ravel()) / expected.size
        assert (shares > 0.05).sum() >= 2, "masks of one value would agree whatever was computed"
        assert (expected == found).mean() >= LEAST_EQUAL

    against(candidate=label_onnx, peer=label_eager, agree=agree, items=BATCH)
