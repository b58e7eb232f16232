"""`cpn export`: a trained run as one ONNX file that takes raw pixels and gives masks."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir

from cpn_export.cam_graph import labeller_graph
from cpn_export.graph_surgery import Conversion, unchanged
from cpn_export.metadata import ModelInfo
from cpn_export.quantization import Calibration, conversion_of
from cpn_export.segmentation_graph import segmenter_graph
from cpn_fast.cam.map_options import MapOptions
from cpn_fast.config.export import ExportConfig
from cpn_fast.config.scales import SEGMENT_SCALES
from cpn_fast.config.training import SegmentConfig
from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.background_score import check_score
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.palette import voc_palette
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.models.labeller import Labeller
from cpn_fast.models.segmenter import Segmenter
from cpn_fast.runs.folder import RunFolder

logger = logging.getLogger(__name__)

PALETTE = tuple((int(r), int(g), int(b)) for r, g, b in voc_palette())
DEFAULT_THRESHOLD = 0.5


def run_export(config: ExportConfig, progress: Progress = SILENT) -> Path:
    """Export a run.

    Args:
        config: what to export, and how.
        progress: where the steps, and the calibration of `--precision int8`, are shown.

    Returns:
        The file written.

    Raises:
        DataError: if an option is out of range or does not fit the run, or there is no such run.
    """
    _check(config)
    run = RunFolder(config.run)
    export = _export_segmentation if run.task == "segment" else _export_cam
    progress.say(f"{run.path}: tracing the network; its graph is then checked and written to {config.output}")
    info = export(config, run, progress)
    size = config.output.stat().st_size / 2**20
    score = "" if info.beta is None else f", beta {info.beta:.2f}"
    logger.info("%s: %s, %.1f MiB, %d classes%s", config.output, info.precision, size, len(info.classes), score)
    return config.output


def _export_cam(config: ExportConfig, run: RunFolder, progress: Progress) -> ModelInfo:
    settings = run.config
    wanted = MapOptions(
        config.scales,
        config.scales_of,
        config.flip,
        config.refine,
        config.refine_at,
        config.affinity_power,
        config.pairs or 0,
    )
    how = wanted.resolved(run)
    info = ModelInfo(
        classes=run.classes,
        palette=PALETTE,
        beta=run.background_score(config.beta, how.refine.refine),
        threshold=DEFAULT_THRESHOLD if config.threshold is None else config.threshold,
        max_side=config.max_side,
        scales=how.scales,
        flip=how.flip,
        map_norm=settings.options.map_norm,
        run=config.run.resolve().name,
        method=settings.method,
        backbone=settings.backbone,
        cpn_fast_version=_version(),
        precision=config.precision,
        scale_side=how.side,
        refine=how.refine.refine,
        refine_at=how.refine.at,
        affinity_power=how.refine.power,
        pairs=how.pairs,
        **_card(config, run, settings.augment.crop),
    )
    net = run.load_model()
    assert info.beta is not None and info.threshold is not None
    options = settings.options
    labeller = Labeller(
        net, how.scales, how.flip, info.beta, info.threshold, options.map_norm, options.scale_resize, how.refine,
        how.side, how.pairs,
    )  # fmt: skip
    conversion = conversion_of(config.precision, net.mean, how.scales, _calibration(config), how.side, progress)
    export_labeller(labeller, info, config.output, conversion)
    logger.info("%s: %s", config.output, how)
    return info


def _export_segmentation(config: ExportConfig, run: RunFolder, progress: Progress) -> ModelInfo:
    for name in ("beta", "threshold", "scales_of", "refine", "refine_at", "affinity_power", "pairs"):
        if getattr(config, name) is not None:
            raise DataError(
                f"--{name.replace('_', '-')} is for CAM networks; {run.path} is a segmentation network: leave it out"
            )
    settings = run.config_of(SegmentConfig)
    info = ModelInfo(
        classes=run.classes,
        palette=PALETTE,
        beta=None,
        threshold=None,
        max_side=config.max_side,
        scales=config.scales or SEGMENT_SCALES,
        flip=config.flip,
        map_norm=None,
        run=config.run.resolve().name,
        method="deeplab",
        backbone=settings.backbone,
        cpn_fast_version=_version(),
        kind="segmentation",
        precision=config.precision,
        refine=None,
        refine_at=None,
        affinity_power=None,
        **_card(config, run, settings.augment.crop),
    )
    net = run.load_deeplab()
    conversion = conversion_of(config.precision, net.mean, info.scales, _calibration(config), progress=progress)
    export_segmenter(Segmenter(net, info.scales, info.flip), info, config.output, conversion)
    return info


def _card(config: ExportConfig, run: RunFolder, crop: int) -> dict[str, Any]:
    """What the model card holds beside what labelling needs; the mIoU is that of the run's last `cpn evaluate`."""
    card: dict[str, Any] = {"crop": crop, "licence": config.licence}
    if not run.scores_path.is_file():
        return card
    scores = read_json(run.scores_path, "what `cpn evaluate` wrote", "run it again")
    miou = scores.get("miou") if isinstance(scores, dict) else None
    if isinstance(miou, int | float):
        card |= {"miou": float(miou), "miou_of": f"{scores.get('data', '')} ({scores.get('split', '')})"}
    return card


def export_labeller(labeller: Labeller, info: ModelInfo, output: Path, conversion: Conversion = unchanged) -> None:
    """Trace, check and write a labeller; the file is replaced in one step.

    Args:
        labeller: on the CPU.
        info: goes into the metadata.
        output: the `.onnx` file.
        conversion: of the network, see `conversion_of`.

    Raises:
        onnx.checker.ValidationError: if the graph is not valid ONNX.
        DataError: if the conversion cannot be made.
    """
    _write(labeller_graph(labeller, conversion), info, output)


def export_segmenter(segmenter: Segmenter, info: ModelInfo, output: Path, conversion: Conversion = unchanged) -> None:
    """The same for a segmenter."""
    _write(segmenter_graph(segmenter, conversion), info, output)


def _write(model: onnx_ir.Model, info: ModelInfo, output: Path) -> None:
    model.producer_name, model.producer_version = "cpn-fast", info.cpn_fast_version
    model.metadata_props.update(info.to_metadata())
    with atomic_path(output) as temporary:
        onnx_ir.save(model, temporary)
        # By path: a model in memory is serialised again, which fails above 2 GiB.
        onnx.checker.check_model(temporary, full_check=True)


def _calibration(config: ExportConfig) -> Calibration | None:
    if config.calibrate is None:
        return None
    return Calibration(config.calibrate, config.calibrate_images, config.max_side, config.reduce_range)


def _check(config: ExportConfig) -> None:
    for name in ("beta", "threshold"):
        value = getattr(config, name)
        if value is not None:
            check_score(value, f"--{name}")
    if config.scales is not None and not config.scales:
        raise DataError("--scales is empty, expected factors such as 0.5 1 1.5 2")
    for scale in config.scales or ():
        if scale < 0.1 or abs(scale * 100 - round(scale * 100)) > 1e-9:
            raise DataError(f"--scales has {scale}, expected factors of at least 0.1 in steps of 0.01")
    for name in ("max_side", "calibrate_images"):
        if getattr(config, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} is {getattr(config, name)}, expected at least 1")
    if config.precision == "int8" and config.calibrate is None:
        raise DataError("--precision int8 needs images to calibrate on; expected --calibrate FOLDER")
    for name in ("calibrate", "reduce_range"):
        if config.precision != "int8" and getattr(config, name):
            raise DataError(f"--{name.replace('_', '-')} is for --precision int8, found --precision {config.precision}")


def _version() -> str:
    try:
        return version("cpn-fast")
    except PackageNotFoundError:
        return ""
