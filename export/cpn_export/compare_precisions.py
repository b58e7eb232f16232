"""What float16 and int8 cost and save: `python -m cpn_export.compare_precisions MODEL.onnx OTHER.onnx --data DATA`."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cpn_export.agreement import MaskAgreement
from cpn_export.runtime import OnnxLabeller
from cpn_fast.console.exit_status import guarded
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import spread_evenly
from cpn_fast.data.types import Record, Source
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.metrics.beta_sweep import check_mask, iou_point
from cpn_fast.metrics.confusion import confusion_of

MIB = 2**20


@dataclass(frozen=True)
class PrecisionsConfig:
    """Compare exports of one run: mIoU, agreement with the first one, time and size, all in one pass on the CPU.

    Attributes:
        models: the `.onnx` files, the float32 one first.
        data: source of the images.
        split: split to draw from.
        images: so many of its images, spread evenly, of those with masks if any; None = all.
        threads: CPU threads of each model; 0 = all cores.
        output: JSON file for the figures.
    """

    models: tyro.conf.Positional[tuple[Path, ...]]
    data: str
    split: str = "val"
    images: int | None = None
    threads: int = 0
    output: Path | None = None


@dataclass
class Measured(MaskAgreement):
    """What is counted of one model; it agrees with the first one, at the size the network saw.

    Attributes:
        path: its file.
        precision: its number format.
        confusion: int64 [K + 1, K + 2] over the images with ground truth, at their own size.
        seconds: time of each image.
    """

    path: Path = field(kw_only=True)
    precision: str = field(kw_only=True)
    confusion: NDArray[np.int64] = field(kw_only=True)
    seconds: list[float] = field(default_factory=list)

    @property
    def miou(self) -> float:
        """mIoU in 0..1 over background and classes; NaN without ground truth."""
        return iou_point(self.confusion).miou if self.confusion.any() else math.nan

    @property
    def milliseconds(self) -> float:
        """Median time per image. The first image, which warms up, does not count where there are others."""
        return 1e3 * statistics.median(self.seconds[1:] or self.seconds)

    @property
    def mib(self) -> float:
        """Size of the file in MiB."""
        return self.path.stat().st_size / MIB


def run_compare_precisions(config: PrecisionsConfig, progress: Progress = SILENT) -> list[Measured]:
    """Measure, print a table, and write the JSON file if one is asked for.

    A CAM network is given the image's labels, as for pseudo masks; a segmentation network is not.

    Raises:
        DataError: if models, data or options cannot be used or do not fit each other.
    """
    if config.images is not None and config.images < 1:
        raise DataError(f"--images is {config.images}, expected at least 1")
    labellers = _open(config)
    info = labellers[0].info
    source = open_source(config.data)
    mapping = ClassMapping.between(source.classes, info.classes)
    records = spread_evenly(source.records(config.split), config.images)
    channels = (len(info.classes) + 1, len(info.classes) + 2)
    found = [
        Measured(path=path, precision=labeller.info.precision, confusion=np.zeros(channels, np.int64))
        for path, labeller in zip(config.models, labellers, strict=True)
    ]
    with progress.items("measuring", len(records)) as advance:
        for turn, record in enumerate(records):
            _measure(labellers, found, source, record, mapping, turn)
            advance(1)
    _show(progress, found, len(records), config.threads)
    if config.output is not None:
        atomic_write_text(config.output, json.dumps(_as_json(config, found, len(records)), indent=2) + "\n")
    return found


def _open(config: PrecisionsConfig) -> list[OnnxLabeller]:
    if len(config.models) < 2:
        raise DataError("expected at least two models to compare, the float32 one first")
    labellers = [OnnxLabeller(path, threads=config.threads) for path in config.models]
    for name in ("kind", "classes", "scales", "flip", "beta", "max_side", "run"):
        first = getattr(labellers[0].info, name)
        for path, labeller in zip(config.models, labellers, strict=True):
            if getattr(labeller.info, name) != first:
                raise DataError(
                    f"{path}: its {name} is {getattr(labeller.info, name)}, that of {config.models[0]} is {first}; "
                    "expected exports of one run that differ in --precision alone"
                )
    return labellers


def _measure(
    labellers: Sequence[OnnxLabeller],
    found: Sequence[Measured],
    source: Source,
    record: Record,
    mapping: ClassMapping,
    turn: int,
) -> None:
    """One image through every model; which goes first depends on the turn."""
    info = labellers[0].info
    sample = source.read(record, with_mask=True)
    image = np.ascontiguousarray(reduce_image(sample.image, info.max_side))[None]
    labels = np.full((1, len(info.classes)), -1, np.float32)
    if info.kind == "cam" and record.labels:
        labels[0] = mapping.vector(record.labels)
    masks, seconds = {}, {}
    for offset in range(len(labellers)):
        index = (turn + offset) % len(labellers)
        start = time.perf_counter()
        masks[index] = labellers[index](image, labels).mask[0]
        seconds[index] = time.perf_counter() - start
    truth = None if sample.mask is None else mapping.mask(sample.mask)
    for index, measured in enumerate(found):
        measured.add_masks(masks[index], masks[0])
        measured.seconds.append(seconds[index])
        if truth is not None:
            predicted = enlarge(masks[index], *sample.image.shape[:2])
            check_mask(truth, predicted.shape, mapping.num_classes, str(record.mask_path or record.image_path))
            measured.confusion += confusion_of(truth, predicted, mapping.num_classes)


def _as_json(config: PrecisionsConfig, found: Sequence[Measured], images: int) -> dict[str, object]:
    rows = [
        {
            "model": str(one.path),
            "precision": one.precision,
            "mib": one.mib,
            "miou": None if math.isnan(one.miou) else one.miou,
            "pixels_equal": one.pixels_equal,
            "foreground_pixels_equal": one.foreground_pixels_equal,
            "milliseconds": one.milliseconds,
        }
        for one in found
    ]
    return {
        "data": config.data,
        "split": config.split,
        "images": images,
        "threads": config.threads,
        "precisions": rows,
    }


def _show(progress: Progress, found: Sequence[Measured], images: int, threads: int) -> None:
    table = Table("precision", "file", "MiB", "mIoU", "pixels as first", "foreground as first", "ms per image", "speed")
    first = found[0]
    for one in found:
        miou = "-" if math.isnan(one.miou) else f"{100 * one.miou:.2f}"
        shares = (f"{100 * share:.2f}%" for share in (one.pixels_equal, one.foreground_pixels_equal))
        speed = f"{first.milliseconds / one.milliseconds:.2f}x"
        table.add_row(one.precision, one.path.name, f"{one.mib:.1f}", miou, *shares, f"{one.milliseconds:.0f}", speed)
    progress.say(table)
    cores = "all cores" if threads == 0 else f"{threads} threads"
    progress.say(f"{images} images, one at a time, onnxruntime on the CPU, {cores}; median times")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Returns:
        0, or 2 for an error that the message explains.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(PrecisionsConfig, args=args, prog="python -m cpn_export.compare_precisions")
    return guarded(lambda: run_compare_precisions(config, TerminalProgress(Console(width=120))))


if __name__ == "__main__":
    raise SystemExit(main())
