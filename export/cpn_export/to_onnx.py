"""`cpn export`: a trained run as one ONNX file that takes raw pixels and gives masks."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import torch
import tyro
from torch import Tensor, nn

from cpn_export.metadata import ModelInfo
from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import voc_palette
from cpn_fast.models.labeller import SCALES, Labeller
from cpn_fast.run_folder import RunFolder

INPUTS = ("image", "labels")
OUTPUTS = ("rcam", "scores", "mask")
LEAST_TRACED_SIDE = 64
"""Sides of the smallest scale that tracing assumes, so that no grid counts as one pixel wide. The graph checks nothing:
smaller images run too, and are tested."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportConfig:
    """Write a run as an ONNX model for `cpn-label`.

    Attributes:
        run: run folder.
        output: the `.onnx` file.
        scales: scale factors of the image, in steps of 0.01.
        flip: also run the mirrored image.
        beta: background score of the masks, in [0, 1]; None = the best one that `cpn evaluate` found for the run.
        threshold: class probability above which a class stands in where an image has no labels.
        max_side: longer images are to be reduced to this long side in pixels first (by `cpn-label`, not in the graph).
    """

    run: tyro.conf.Positional[Path]
    output: Path
    scales: tuple[float, ...] = SCALES
    flip: bool = True
    beta: float | None = None
    threshold: float = 0.5
    max_side: int = 1024


class _Graph(nn.Module):
    """The labeller with the outputs that the ONNX file has."""

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.labeller = labeller

    def forward(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [B, H, W, 3], float [B, K] -> rcam [B, K, H, W], scores [B, K], mask uint8 [B, H, W]."""
        labelled = self.labeller(image, labels)
        return labelled.rcam, labelled.scores, labelled.mask


def run_export(config: ExportConfig) -> Path:
    """Export a run.

    Returns:
        The file written.

    Raises:
        DataError: if an option is out of range, or there is no such run.
    """
    _check(config)
    run = RunFolder(config.run)
    settings = run.config
    beta = run.beta if config.beta is None else config.beta
    map_norm = settings.options.map_norm
    labeller = Labeller(run.load_model(), config.scales, config.flip, beta, config.threshold, map_norm)
    info = ModelInfo(
        classes=run.classes,
        palette=tuple((int(r), int(g), int(b)) for r, g, b in voc_palette()),
        beta=beta,
        threshold=config.threshold,
        max_side=config.max_side,
        scales=config.scales,
        flip=config.flip,
        map_norm=map_norm,
        run=config.run.resolve().name,
        method=settings.method,
        backbone=settings.backbone,
        cpn_fast_version=_version(),
    )
    export_labeller(labeller, info, config.output)
    size = config.output.stat().st_size / 2**20
    logger.info("%s: %.1f MiB, %d classes, beta %.2f", config.output, size, len(info.classes), beta)
    return config.output


def export_labeller(labeller: Labeller, info: ModelInfo, output: Path) -> None:
    """Trace, check and write a labeller; the file is replaced in one step.

    Args:
        labeller: on the CPU.
        info: goes into the metadata.
        output: the `.onnx` file.

    Raises:
        onnx.checker.ValidationError: if the graph is not valid ONNX.
    """
    program = _traced(_Graph(labeller).eval(), len(info.classes), math.ceil(LEAST_TRACED_SIDE / min(labeller.scales)))
    model = program.model_proto
    onnx.helper.set_model_props(model, info.to_metadata())
    with atomic_path(output) as temporary:
        onnx.save(model, temporary)
        # By path: a model in memory is serialised again, which fails above 2 GiB.
        onnx.checker.check_model(temporary, full_check=True)


def _traced(graph: nn.Module, num_classes: int, least_side: int) -> torch.onnx.ONNXProgram:
    """The ONNX program of a graph with dynamic batch, height and width."""
    batch = torch.export.Dim("batch", min=1)
    height, width = (torch.export.Dim(name, min=least_side) for name in ("height", "width"))
    # Odd sides, and not the same ones: nothing is to be traced as equal by chance.
    sides = (least_side // 2 * 2 + 33, least_side // 2 * 2 + 67)
    example = (torch.zeros(2, *sides, 3, dtype=torch.uint8), torch.full((2, num_classes), -1.0))
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # "no torchvision"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*axis name: batch will not be used")  # both inputs have it
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: batch, 1: height, 2: width}, {0: batch}),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program


def _check(config: ExportConfig) -> None:
    for name in ("beta", "threshold"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"--{name} is {value}, expected a number in 0..1")
    if not config.scales:
        raise DataError("--scales is empty, expected factors such as 0.5 1 1.5 2")
    for scale in config.scales:
        if scale < 0.1 or abs(scale * 100 - round(scale * 100)) > 1e-9:
            raise DataError(f"--scales has {scale}, expected factors of at least 0.1 in steps of 0.01")
    if config.max_side < 1:
        raise DataError(f"--max-side is {config.max_side}, expected a number of pixels")


def _version() -> str:
    try:
        return version("cpn-fast")
    except PackageNotFoundError:
        return ""
