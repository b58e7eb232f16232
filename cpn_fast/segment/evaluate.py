"""`cpn segment evaluate`: mIoU of a segmentation run at one scale, at several with flip, and after a dense CRF."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from cpn_fast.data.sources.base import folders_of
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import records_of
from cpn_fast.data.types import Record
from cpn_fast.device import ready_device, threads_shared_by
from cpn_fast.files.apart import check_apart
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, error_entry
from cpn_fast.files.output_folder import check_is_folder, raise_io_errors_as
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.counting import counted
from cpn_fast.inference.image_size import warn_of_size
from cpn_fast.inference.reader import Failure
from cpn_fast.inference.record_work import NetworkWork
from cpn_fast.metrics.beta_sweep import check_mask, iou_point
from cpn_fast.metrics.confusion import confusion_of, warn_without_foreground
from cpn_fast.metrics.report import METRICS_NAME, class_table, percent, point_values, write_metrics
from cpn_fast.models.segmenter import Segmenter
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.inference import Segmentation, open_segmenters, segmentations
from cpn_fast.segment.options import SegmentEvaluateConfig
from cpn_kernels.ops.dense_crf import Settings

SINGLE, MULTI, CRF = "single scale", "multi-scale", "multi-scale + CRF"


def run_segment_evaluate(config: SegmentEvaluateConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Score a run; writes metrics.json.

    Args:
        config: what to score, and how.
        progress: where bar and tables are shown.

    Returns:
        the content of metrics.json: at the top the figures of the last row of the table, under `results` those of all;
        IoU values in 0..1.

    Raises:
        DataError: for a run, source or option that does not fit, an image or mask that cannot be read, a mask of
            another size than its image, or a split without any mask.
    """
    options = config.inference_options(with_mask=True)
    crf = config.crf_settings(config.crf_preset) if config.crf else None
    run, source = RunFolder(config.run), open_source(config.data)
    if config.output is not None:
        check_is_folder(config.output)
        check_apart(config.output, folders_of(source))
    inferences = {SINGLE: ((1.0,), False), MULTI: (config.scales, config.flip)}
    engine = config.open_engine()
    segmenters = open_segmenters(run, inferences, "cpu" if config.on_cluster else config.device)
    classes = run.classes
    mapping = ClassMapping.between(source.classes, classes)
    _, records = records_of(source, config.split)
    warn_of_size(run, records, config.max_side)
    work = SegmentCounts(
        workers=config.workers, source=source, segmenters=segmenters, mapping=mapping, options=options, crf=crf,
        device=config.device,
    )  # fmt: skip
    tally = Tally(len(classes), (SINGLE, MULTI) if crf is None else (SINGLE, MULTI, CRF))
    with closing(counted(work, records, engine, progress)) as entries:
        for entry in entries:
            tally.add(entry["counts"])
    if not tally.images:
        raise DataError(
            f"{config.data}: none of the {len(records)} images of split {config.split!r} has a mask; mIoU needs ground "
            "truth: give a split that has masks"
        )
    metrics = _metrics(config, run, source.spec, tally, crf)
    warn_without_foreground(source.spec, tally.confusions[SINGLE])
    path = (config.output or config.run) / METRICS_NAME
    with raise_io_errors_as(path.parent, METRICS_NAME):
        write_metrics(path, metrics)
    progress.say(_table(metrics))
    progress.say(class_table(metrics, f"IoU in %, {metrics['inference']}"))
    left_out = f", {tally.without_mask} without ground truth excluded" if tally.without_mask else ""
    progress.say(f"{config.run}: {tally.images} images scored{left_out}")
    progress.say(str(path))
    return metrics


@dataclass(frozen=True, kw_only=True)
class SegmentCounts(NetworkWork[Segmentation | Failure[Record]]):
    """Images through the segmentation network, and its masks to confusion counts.

    An entry holds `counts`: those of every way to make a mask, by name; None without ground truth.

    Attributes:
        segmenters: the ways, of one network.
        crf: numbers of the CRF, a further way; None without.
    """

    verb: ClassVar[str] = "evaluate"

    segmenters: Mapping[str, Segmenter]
    crf: Settings | None

    def on_worker(self) -> Self:
        """With the network on the device there."""
        device = ready_device(self.device)
        moved = {name: segmenter.to(device) for name, segmenter in self.segmenters.items()}
        return dataclasses.replace(self, segmenters=moved)

    def threads(self) -> AbstractContextManager[object]:
        """The CRFs of several images share the cores."""
        return nullcontext() if self.crf is None else threads_shared_by(self.workers)

    def ready(self, todo: Sequence[Record]) -> Iterator[Segmentation | Failure[Record]]:
        """What the network says of each image."""
        keep = self.crf is not None
        return segmentations(self.segmenters, self.source, todo, self.mapping, self.options, keep_probabilities=keep)

    def work(self, item: Segmentation | Failure[Record]) -> Entry:
        """Count one image. Raises DataError for a mask that does not fit it, or numbers of the CRF that don't."""
        record, classes = item.record, self.mapping.num_classes
        if isinstance(item, Failure):
            return error_entry(record.id, record.image_path, item.error)
        entry: Entry = {"id": record.id, "status": "ok", "counts": None}
        if item.truth is None:
            return entry
        check_mask(item.truth, item.size, classes, str(record.mask_path or record.image_path))
        masks = {name: item.mask(name) for name in item.masks}
        if self.crf is not None:
            masks[CRF] = item.crf_mask(self.crf)
        return {**entry, "counts": {name: confusion_of(item.truth, mask, classes) for name, mask in masks.items()}}


class Tally:
    """Confusion counts of every way to make a mask.

    Args:
        num_classes: K foreground classes.
        names: of the ways.
    """

    def __init__(self, num_classes: int, names: Sequence[str]) -> None:
        self.images = self.without_mask = 0
        self.confusions = {name: np.zeros((num_classes + 1, num_classes + 2), dtype=np.int64) for name in names}

    def add(self, counts: dict[str, NDArray[np.int64]] | None) -> None:
        """Add the counts of one image."""
        if counts is None:
            self.without_mask += 1
            return
        self.images += 1
        for name, confusion in counts.items():
            self.confusions[name] += confusion


def _metrics(
    config: SegmentEvaluateConfig, run: RunFolder, spec: str, tally: Tally, crf: Settings | None
) -> dict[str, Any]:
    results = {}
    for name, confusion in tally.confusions.items():
        values = point_values(iou_point(confusion), run.classes)
        del values["beta"]  # there is no background score to choose
        results[name] = values
    primary = list(results)[-1]
    return {
        **results[primary],
        "inference": primary,
        "target": str(config.run),
        "data": spec,
        "split": config.split,
        "images": tally.images,
        "without_mask": tally.without_mask,
        "classes": list(run.classes),
        "scales": list(config.scales),
        "flip": config.flip,
        "max_side": config.max_side,
        "use_labels": config.use_labels,
        "crf": None if crf is None else dataclasses.asdict(crf),
        "weights_sha256": weights_digest(run),
        "results": results,
    }


def _table(metrics: dict[str, Any]) -> Table:
    """A row for each way to make a mask."""
    scales = " ".join(f"{scale:g}" for scale in metrics["scales"])
    table = Table(title=f"IoU in %; scales {scales}{' with flip' if metrics['flip'] else ''}", title_justify="left")
    table.add_column("inference")
    for column in ("mIoU", "background", "foreground"):
        table.add_column(column, justify="right")
    for name, values in metrics["results"].items():
        cells = [percent(values[column]) for column in ("miou", "background", "foreground")]
        table.add_row(name, *cells, style="bold" if name == metrics["inference"] else None)
    return table
