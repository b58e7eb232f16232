"""Models to label with: a hand-written graph for the program around it, and a trained run with its export."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cpn_export.metadata import ModelInfo
from cpn_fast.files.palette import voc_palette

TOY_GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
toy (uint8[batch,height,width,3] image, float[batch,2] labels)
  => (float[batch,2,height,width] rcam, float[batch,2] scores, uint8[batch,height,width] mask)
<int64 zero = {0}, uint8 half = {128}, float[2] base = {0.7, 0.2}, float none = {0}, int64[1] one = {1}>
{
  red = Gather <axis = 3> (image, zero)
  bright = Greater (red, half)
  mask = Cast <to = 2> (bright)
  nothing = Mul (labels, none)
  scores = Add (nothing, base)
  plane = Cast <to = 1> (bright)
  map = Unsqueeze (plane, one)
  rcam = Concat <axis = 1> (map, map)
}
"""
"""Mask 1 where an image is red; scores 0.7 and 0.2 whatever the image."""

BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "lightning_fabric", "triton", "skimage", "cv2"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
import importlib
raise SystemExit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""


TRAINED_CLASSES = ("rot", "grün", "blau")
SCALES = (0.5, 1.0)


def toy_info(**changes: object) -> ModelInfo:
    """The metadata of the hand-written graph."""
    values: dict[str, object] = {
        "classes": ("cat", "dög"),
        "palette": tuple(tuple(map(int, colour)) for colour in voc_palette()),
        "beta": 0.25,
        "threshold": 0.5,
        "max_side": 64,
        "scales": (1.0,),
        "flip": False,
        "map_norm": "minmax",
        "run": "toy",
        "method": "cam",
        "backbone": "none",
        "cpn_fast_version": "0",
    }
    return ModelInfo(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def parts_traced_once() -> Iterator[None]:
    """Most of an export is tracing, which knows nothing of the precision that follows."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "onnxscript")):
        yield
        return
    from tests.cpn_export.traced_once import equal_parts_traced_once

    with equal_parts_traced_once():
        yield


@pytest.fixture(scope="session")
def write_toy_model() -> Callable[..., Path]:
    """Write the hand-written graph: `write_toy_model(path, metadata=None, graph=TOY_GRAPH, **changes of ModelInfo)`."""

    def write(path: Path, metadata: dict[str, str] | None = None, graph: str = TOY_GRAPH, **changes: object) -> Path:
        onnx = pytest.importorskip("onnx", reason="needs onnx to write a model")
        model = onnx.parser.parse_model(graph)
        onnx.helper.set_model_props(model, toy_info(**changes).to_metadata() if metadata is None else metadata)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path

    return write


@pytest.fixture(scope="session")
def run_without_torch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`cpn-label` in a process that cannot import torch and its like: `run_without_torch(*arguments)`."""

    def run(*arguments: object, module: str = "cpn_export.label") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCK_TORCH, module, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


def shapes_image(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """One or two coloured ellipses on grey noise; uint8 [H, W, 3] and the classes (0 red, 1 green, 2 blue)."""
    coarse = rng.integers(60, 160, (height // 8 + 2, width // 8 + 2, 1), dtype=np.uint8).repeat(3, axis=2)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    classes = tuple(sorted(rng.choice(3, size=rng.integers(1, 3), replace=False).tolist()))
    rows, columns = np.mgrid[:height, :width]
    for index, c in enumerate(classes):
        # Left and right half, so that neither hides the other.
        centre = (rng.uniform(0.35, 0.65) * height, (0.5 * index + rng.uniform(0.2, 0.3)) * width)
        inside = ((rows - centre[0]) / (0.3 * height)) ** 2 + ((columns - centre[1]) / (0.2 * width)) ** 2 < 1
        image[inside] = image[inside] // 3
        image[inside, c] = 230
    return image, classes


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder source of 16 images of coloured ellipses in several sizes, with labels.csv."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(7)
    rows = []
    for index, size in enumerate(
        [(64, 96), (64, 96), (96, 64), (75, 101), (64, 96), (64, 96), (96, 64), (130, 90)] * 2
    ):
        image, classes = shapes_image(rng, *size)
        name = f"teil {index % 2}/bild{index}.png"
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(root / name)
        rows.append(f"{name},{';'.join(TRAINED_CLASSES[c] for c in classes)}")
    (root / "labels.csv").write_text("\n".join(["image,labels", *rows]) + "\n", encoding="utf-8")
    (root / "classes.txt").write_text("\n".join(TRAINED_CLASSES) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A `resnet38_tiny` with PCM and PRCM that was trained until it knows the shapes, as a run, and its export.

    Attributes: `run` (RunFolder), `model` (Path).
    """
    torch = pytest.importorskip("torch", reason="needs the [train] packages")
    from cpn_export.to_onnx import ExportConfig, run_export
    from cpn_fast.config.training import MethodOptions, TrainConfig
    from cpn_fast.models.backbones import create_backbone
    from cpn_fast.models.cam import CamNet
    from cpn_fast.runs.folder import RunFolder

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = CamNet(create_backbone("resnet38_tiny", frozen=False), len(TRAINED_CLASSES), "prcm")
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(count, len(TRAINED_CLASSES))
        images = []
        for row in labels:
            image, classes = shapes_image(rng, 48, 64)
            row[list(classes)] = 1
            images.append(torch.from_numpy(image).permute(2, 0, 1) / 255 - 0.45)
        return torch.stack(images) / 0.225, labels

    def right() -> float:
        """Share of the labels of fresh pictures that the network knows."""
        views, labels = batch(64)
        net.eval()
        with torch.no_grad():
            agree = (net(views).scores > 0) == (labels > 0)
        net.train()
        return float(agree.float().mean())

    for step in range(1, 301):  # 60 steps are enough on most processors; their rounding decides which steps help
        views, labels = batch(8)
        loss = torch.nn.functional.multilabel_soft_margin_loss(net(views).scores, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 30 == 0 and right() > 0.95:
            break
    else:
        pytest.fail(f"only {right():.2f} of the labels are right: the network did not learn")
    net.eval()
    run = RunFolder(tmp_path_factory.mktemp("trained") / "run")
    run.path.mkdir()
    options = MethodOptions(prcm="softmax")
    run.create(TrainConfig(data="demo:", output=run.path, backbone="resnet38_tiny", options=options), TRAINED_CLASSES)
    run.save_model(net, step)
    model = run_export(ExportConfig(run.path, run.path / "model.onnx", scales=SCALES, beta=0.3))
    return SimpleNamespace(run=run, model=model)


@pytest.fixture(scope="session")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small DeepLab that was trained until it finds the shapes, and its export.

    Attributes: `segmenter` (Segmenter), `info` (ModelInfo), `model` (Path), `picture` (count, height, width, seed) ->
    images uint8 [B, H, W, 3] and their true masks uint8 [B, H, W].
    """
    torch = pytest.importorskip("torch", reason="needs the [train] packages")
    from torch import nn

    from cpn_export.to_onnx import export_segmenter
    from cpn_fast.models.backbones import Backbone
    from cpn_fast.models.backbones.mobilenet_v2 import ConvNorm, InvertedResidual
    from cpn_fast.models.deeplab import DeepLab, set_norm_momentum
    from cpn_fast.models.segmenter import Segmenter
    from cpn_kernels.ops.cp_triplet import normalise_images

    class Small(Backbone):
        """The first blocks of a MobileNetV2 in few channels, at stride 8."""

        def __init__(self) -> None:
            super().__init__()
            self.channels, self.strides = (32, 32, 32), (8, 8, 8)
            self.layers = nn.Sequential(
                ConvNorm(3, 16, stride=2),
                InvertedResidual(16, 24, 4, 2, 1, residual=False),
                InvertedResidual(24, 24, 4, 1, 1, residual=True),
                InvertedResidual(24, 32, 4, 2, 1, residual=False),
            )
            self.initialise(frozen=False)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            final = self.layers(x)
            return final, final, final

    def picture(count: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        images = np.stack([shapes_image(rng, height, width)[0] for _ in range(count)])
        bright = images == 230  # the colour of the shapes, which the grey around them never reaches
        return images, np.where(bright.any(axis=3), bright.argmax(axis=3) + 1, 0).astype(np.uint8)

    torch.manual_seed(0)
    net = DeepLab(Small(), len(TRAINED_CLASSES), dropout=0.1).train()
    set_norm_momentum(net, 0.1)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(60):
        images, masks = picture(6, *((64, 96) if step % 2 else (32, 48)), seed=100 + step)
        logits = net(normalise_images(torch.from_numpy(images)))
        logits = nn.functional.interpolate(logits, size=masks.shape[1:], mode="bilinear")
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(masks).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    segmenter = Segmenter(net, SCALES)
    images, masks = picture(16, 64, 96)
    with torch.no_grad():
        found = segmenter(torch.from_numpy(images), torch.full((16, 3), -1.0)).mask.numpy()
    right = (found == masks)[masks > 0].mean()
    assert right > 0.9, f"only {right:.2f} of the shapes' pixels are right: the network did not learn"
    info = toy_info(
        classes=TRAINED_CLASSES, kind="segmentation", scales=SCALES, flip=True, max_side=1024,
        beta=None, threshold=None, map_norm=None, method="deeplab", backbone="none", run="shapes",
    )  # fmt: skip
    model = tmp_path_factory.mktemp("segmented") / "model.onnx"
    export_segmenter(segmenter, info, model)
    return SimpleNamespace(segmenter=segmenter, info=info, model=model, picture=picture)
