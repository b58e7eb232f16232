"""`cpn export`: a trained run as one ONNX file that takes raw pixels and gives masks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import onnx_ir
import tyro

from cpn_export.metadata import ModelInfo
from cpn_export.parts import labeller_graph
from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import voc_palette
from cpn_fast.models.labeller import SCALES, Labeller
from cpn_fast.run_folder import RunFolder

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
    model = labeller_graph(labeller)
    model.producer_name, model.producer_version = "cpn-fast", info.cpn_fast_version
    model.metadata_props.update(info.to_metadata())
    with atomic_path(output) as temporary:
        onnx_ir.save(model, temporary)
        # By path: a model in memory is serialised again, which fails above 2 GiB.
        onnx.checker.check_model(temporary, full_check=True)


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
