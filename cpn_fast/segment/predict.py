"""`cpn segment predict`: the masks of a split from a segmentation run, in VOC layout, with a dense CRF if asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from cpn_fast.config.display import resuming
from cpn_fast.data.sources.base import folders_of
from cpn_fast.data.sources.open import open_source_for
from cpn_fast.data.sources.spread import records_of, spread
from cpn_fast.data.types import Record
from cpn_fast.device import ready_device, threads_shared_by
from cpn_fast.files.disk_space import FILE_BYTES, MASK_BYTES, mean_pixels
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, JobSummary, error_entry
from cpn_fast.files.jobs import run as run_jobs
from cpn_fast.files.mask_folder import class_names, foreground_share, without_object
from cpn_fast.files.mask_jobs import MaskJobs
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.shard import take_shard
from cpn_fast.files.shards.job import run_into_shards
from cpn_fast.files.shards.masks import ShardWriter
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.image_size import LOOKED_AT, warn_of_size
from cpn_fast.inference.options import check_positive
from cpn_fast.inference.reader import Failure
from cpn_fast.inference.record_work import NetworkWork
from cpn_fast.inference.sink import Ids, mask_sink
from cpn_fast.models.segmenter import Segmenter
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.inference import Segmentation, open_segmenters, segmentations
from cpn_fast.segment.options import PredictConfig
from cpn_fast.segment.voc_zip import check_voc_classes, write_voc_zip
from cpn_kernels.ops.dense_crf import Settings

_MULTI = "multi-scale"


@dataclass(frozen=True, kw_only=True)
class PredictJobs(NetworkWork[Segmentation | Failure[Record]], MaskJobs[Record, Segmentation | Failure[Record]]):
    """Images through the segmentation network, and what it finds to masks.

    Attributes:
        segmenter: the network.
        classes: its K foreground classes.
        crf: numbers of the CRF, None without.
    """

    verb: ClassVar[str] = "segment"
    participle: ClassVar[str] = "predicted"
    needed_to: ClassVar[str] = "segmented"

    segmenter: Segmenter
    classes: tuple[str, ...]
    crf: Settings | None

    def on_worker(self) -> Self:
        """With the network on the device there."""
        return dataclasses.replace(self, segmenter=self.segmenter.to(ready_device(self.device)))

    def is_done(self, item: Record, entry: Mapping[str, Any]) -> bool:
        """Whether the mask is there and was limited to the labels that the image has now."""
        limited = self.options.use_labels and item.labels is not None
        labels = class_names(self.classes, self.mapping.vector(item.labels or ())) if limited else None
        return self.folder.has(item.id) and entry.get("labels") == labels

    def bytes_needed(self, todo: Sequence[Record]) -> float:
        """By the sizes of a few of the images."""
        return len(todo) * (
            mean_pixels([record.image_path for record in spread(todo, LOOKED_AT)]) * MASK_BYTES + FILE_BYTES
        )

    def prepare(self) -> None:
        """The labelmap."""
        self.folder.write_labelmap(self.classes)

    def about(self) -> str:
        """Scales and CRF."""
        scales = " ".join(f"{scale:g}" for scale in self.segmenter.scales)
        return f"scales {scales}, flip {self.segmenter.flip}, dense CRF {self.crf is not None}"

    def threads(self) -> AbstractContextManager[object]:
        """The CRFs of several images share the cores."""
        return nullcontext() if self.crf is None else threads_shared_by(self.workers)

    def ready(self, todo: Sequence[Record]) -> Iterator[Segmentation | Failure[Record]]:
        """What the network says of each image."""
        segmenters = {_MULTI: self.segmenter}
        with_probabilities = self.crf is not None
        return segmentations(segmenters, self.source, todo, self.mapping, self.options, with_probabilities)

    def work(self, item: Segmentation | Failure[Record]) -> Entry:
        """Refine and write the mask."""
        record = item.record
        if isinstance(item, Failure):
            return error_entry(record.id, record.image_path, item.error)
        before = item.mask(_MULTI)
        mask = before if self.crf is None else item.crf_mask(self.crf)
        self.folder.write(record.id, mask)
        present = np.bincount(mask.ravel(), minlength=len(self.classes) + 1)[1:] > 0
        entry = {
            **self.folder.describe(record.id, record.image_path, mask),
            "labels": None if item.allowed is None else class_names(self.classes, item.allowed),
            "predicted": class_names(self.classes, present),
            "foreground": foreground_share(mask),
            "confidence": round(item.confidence, 4),
        }
        return entry if self.crf is None else {**entry, "changed": round(float(np.mean(mask != before)), 4)}


def run_segment_predict(config: PredictConfig, progress: Progress = SILENT) -> JobSummary:
    """Predict a split.

    Args:
        config: what to predict, and how.
        progress: where plan, bar and result are shown.

    Returns:
        how many masks were written, skipped, failed.

    Raises:
        DataError: for a run, source or option that does not fit, an output folder of other settings or that another
            command writes to, a full disk, if no image at all could be segmented, or for a zip that lacks masks.
    """
    engine = config.open_engine()
    jobs, every = _jobs(config)
    if isinstance(jobs.folder, ShardWriter):
        summary = run_into_shards(jobs, jobs.folder, progress, engine)
    else:
        summary = run_jobs(jobs, progress, engine)
    text = f"{summary.written} masks written to {jobs.folder.masks}"
    if summary.written and config.crf:
        changed = sum(entry["changed"] for entry in summary.done) / summary.written
        text += f"; the CRF gave {100 * changed:.1f}% of their pixels another label"
    progress.say(text)
    remedy = "the network finds background alone there: train it longer, or on masks that hold more objects"
    if empty := without_object(summary.done, remedy):
        progress.say(empty)
    if config.voc_zip is not None:
        write_voc_zip(config.voc_zip, config.output, [record.id for record in every])
        progress.say(f"{config.voc_zip}: {len(every)} masks")
    return summary


def _jobs(config: PredictConfig) -> tuple[PredictJobs, Sequence[Record]]:
    """What is to be done, and all records of the split."""
    options = config.inference_options()
    crf = config.crf_settings(config.crf_preset) if config.crf else None
    run = RunFolder(config.run)
    source = open_source_for(config.data, run.classes)
    device = "cpu" if config.on_cluster else config.device
    segmenters = open_segmenters(run, {_MULTI: (config.scales, config.flip)}, device)
    classes = run.classes
    if config.voc_zip is not None:
        if config.sink != "files":
            raise DataError(f"--voc-zip --sink {config.sink}: the zip is made of files; use --sink files")
        check_voc_classes(classes)
    mapping = ClassMapping.between(source.classes, classes)
    split, every = records_of(source, config.split)
    settings = _settings(config, run, crf)
    check_positive(shard_size=config.shard_size)
    folder = mask_sink(config.output, config.sink, config.shard_size, settings, every)
    in_files = config.sink == "files"
    records = take_shard(every, config.shard) if in_files else every
    warn_of_size(run, records, config.max_side)
    jobs = PredictJobs(
        output=config.output, items=records, folder=folder,
        settings=folder.about if isinstance(folder, ShardWriter) else settings, data=f"{source.spec} ({split})",
        workers=config.workers, overwrite=config.overwrite, shard=config.shard, reads=folders_of(source),
        planned=Ids(every) if in_files else (), command=resuming("segment predict", config),
        source=source, segmenter=segmenters[_MULTI], classes=classes, mapping=mapping, options=options, crf=crf,
        device=config.device,
    )  # fmt: skip
    return jobs, every


def _settings(config: PredictConfig, run: RunFolder, crf: Settings | None) -> dict[str, Any]:
    """Everything that decides what a mask looks like."""
    return {
        "weights_sha256": weights_digest(run),
        "classes": list(run.classes),
        "scales": list(config.scales),
        "flip": config.flip,
        "use_labels": config.use_labels,
        "max_side": config.max_side,
        "crf": None if crf is None else dataclasses.asdict(crf),
    }
