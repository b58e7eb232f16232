"""`cpn label`: pseudo masks of a split from a trained run, in VOC layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cpn_fast.cam.inference import Prediction, compile_net, default_map, open_labeller, predictions
from cpn_fast.cam.map_options import MapOptions, ResolvedMaps
from cpn_fast.cam.one_image import MaskRules, mask_and_entry
from cpn_fast.cam.options import LabelConfig
from cpn_fast.cam.score_by_share import score_without_masks
from cpn_fast.config.display import resuming
from cpn_fast.data.sources.base import LazyRecords, folders_of
from cpn_fast.data.sources.open import open_source_for
from cpn_fast.data.sources.photos import PhotoSource
from cpn_fast.data.sources.spread import records_of, spread
from cpn_fast.data.types import Record, Source
from cpn_fast.device import ready_device
from cpn_fast.files.contact_sheet import write_least_confident
from cpn_fast.files.disk_space import FILE_BYTES, MASK_BYTES, SOFT_BYTES, mean_pixels
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, JobSummary, error_entry
from cpn_fast.files.jobs import run as run_jobs
from cpn_fast.files.mask_folder import class_names, without_object
from cpn_fast.files.mask_jobs import MaskJobs
from cpn_fast.files.photos import default_output
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.shard import take_shard
from cpn_fast.files.shards.job import run_into_shards
from cpn_fast.files.shards.masks import ShardedMasks, ShardWriter
from cpn_fast.files.soft_maps import SoftMaps
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.image_size import LOOKED_AT, warn_of_size
from cpn_fast.inference.options import check_positive
from cpn_fast.inference.reader import Failure, InferenceOptions
from cpn_fast.inference.record_work import NetworkWork
from cpn_fast.inference.sink import Ids, mask_sink
from cpn_fast.metrics.maps import MULTI, MapName
from cpn_fast.models.labeller import Labeller
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder


@dataclass(frozen=True)
class LabelSummary(JobSummary):
    """What a labelling did.

    Attributes:
        from_scores: of those written, images without labels, for which the network's own scores stood in.
        sheet: the contact sheet, None without.
    """

    from_scores: int = 0
    sheet: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LabelJobs(NetworkWork[Prediction | Failure[Record]], MaskJobs[Record, Prediction | Failure[Record]]):
    """Images through the CAM network, and their maps to masks.

    Attributes:
        labeller: the network.
        how: how it makes maps.
        classes: its K foreground classes.
        name: the map that the masks are made of.
        beta: background score.
        void_band: scores within become void; None = none.
        soft_maps: also write the class maps.
        compiled: whether a worker compiles the network.
    """

    verb: ClassVar[str] = "label"
    participle: ClassVar[str] = "labelled"
    needed_to: ClassVar[str] = "labelled"

    labeller: Labeller
    how: ResolvedMaps
    classes: tuple[str, ...]
    name: MapName
    beta: float
    void_band: tuple[float, float] | None
    soft_maps: bool
    compiled: bool

    def on_worker(self) -> Self:
        """With the network on the device there."""
        labeller = self.labeller.to(ready_device(self.device))
        if self.compiled:
            compile_net(labeller.net)
        return replace(self, labeller=labeller)

    def is_done(self, item: Record, entry: Mapping[str, Any]) -> bool:
        """Whether the files are there and the image labels are still those that they were made with."""
        if not self.folder.has(item.id, self.soft_maps):
            return False
        if item.labels is None or not self.options.use_labels:
            return entry.get("labels_from") == "scores"
        present = class_names(self.classes, self.mapping.vector(item.labels))
        return entry.get("labels_from") == "image" and entry.get("labels") == present

    def bytes_needed(self, todo: Sequence[Record]) -> float:
        """By the sizes of a few of the images."""
        pixels = mean_pixels([record.image_path for record in spread(todo, LOOKED_AT)])
        return len(todo) * (pixels * (MASK_BYTES + (SOFT_BYTES if self.soft_maps else 0)) + FILE_BYTES)

    def prepare(self) -> None:
        """The labelmap."""
        self.folder.write_labelmap(self.classes)

    def about(self) -> str:
        """Map, scales, background score."""
        return f"{self.name.upper()}, {self.how}, beta {self.beta:g}"

    def ready(self, todo: Sequence[Record]) -> Iterator[Prediction | Failure[Record]]:
        """What the network says of each image."""
        return predictions(self.labeller, self.source, todo, self.mapping, self.options, only=self.name)

    def work(self, item: Prediction | Failure[Record]) -> Entry:
        """Write mask and soft maps."""
        record = item.record
        if isinstance(item, Failure):
            return error_entry(record.id, record.image_path, item.error)
        mask, said = mask_and_entry(item, self.rules)
        soft = SoftMaps(
            (item.classes + 1).astype(np.uint8), item.maps[self.name, MULTI], (mask.shape[0], mask.shape[1])
        )
        self.folder.write(record.id, mask, soft if self.soft_maps else None)
        return {**self.folder.describe(record.id, record.image_path, mask), **said}

    @property
    def rules(self) -> MaskRules:
        """From maps to a mask."""
        return MaskRules(self.classes, self.name, self.beta, self.void_band)


def run_label(config: LabelConfig, progress: Progress = SILENT) -> LabelSummary:
    """Label a split.

    Args:
        config: what to label, and how.
        progress: where plan, bar and result are shown.

    Returns:
        how many images were labelled, skipped, failed.

    Raises:
        DataError: for a run, source or option that does not fit, an output folder that was labelled with other
            settings or that another command writes to, a full disk, or if no image at all could be labelled.
    """
    _check_options(config)
    engine = config.open_engine()
    source = _source(config)
    split, every = records_of(source, config.split)
    jobs = _jobs(config, source, every, split)
    warn_of_size(RunFolder(config.run), every, config.max_side)
    in_shards = isinstance(jobs.folder, ShardWriter)
    if isinstance(jobs.folder, ShardWriter):
        summary = run_into_shards(jobs, jobs.folder, progress, engine)
    else:
        summary = run_jobs(jobs, progress, engine)
    written = (in_shards and ShardedMasks.find_in(jobs.output)) or jobs.folder
    sheet = write_least_confident(written, _images(source, every), config.sheet, jobs.classes)
    from_scores = sum(entry["labels_from"] == "scores" for entry in summary.done)
    _say_result(config, jobs, summary, from_scores, sheet, progress)
    return LabelSummary(**vars(summary), from_scores=from_scores, sheet=sheet)


def _check_options(config: LabelConfig) -> None:
    if config.void_band is not None and not 0 <= config.void_band[0] <= config.void_band[1] <= 1:
        raise DataError(f"--void-band {config.void_band[0]} {config.void_band[1]}: expected lo <= hi, both in 0..1")
    if config.void_margin is not None:
        margin = f"--void-margin {config.void_margin[0]} {config.void_margin[1]}"
        if not all(0 <= distance <= 1 for distance in config.void_margin):
            raise DataError(f"{margin}: expected two distances in 0..1")
        if config.void_band is not None:
            raise DataError(f"{margin}: --void-band says where scores are void too; give one of the two")
    check_positive(
        max_side=config.max_side, batch_size=config.batch_size, workers=config.workers, shard_size=config.shard_size
    )
    if config.soft_maps and config.sink != "files":
        raise DataError(f"--soft-maps --sink {config.sink}: soft maps are not kept in shards; use --sink files")


def _source(config: LabelConfig) -> Source:
    """The images: a data set, or bare photographs."""
    if (config.data is None) == (not config.images):
        raise DataError("say what to label: image files or folders after the run, or --data SOURCE; one of the two")
    classes = RunFolder(config.run).classes
    if config.data is not None:
        return open_source_for(config.data, classes)
    if len(config.images) == 1 and config.images[0].is_dir():
        return open_source_for(config.images[0], classes)
    return PhotoSource(config.images)


def _output(config: LabelConfig) -> Path:
    if config.output is not None:
        return config.output
    named = config.images or (Path((config.data or "").rpartition(":")[2] or "demo"),)
    return default_output(named)


def _jobs(config: LabelConfig, source: Source, every: Sequence[Record], split: str) -> LabelJobs:
    run = RunFolder(config.run)
    how = MapOptions.of(config).resolved(run)
    guess = run.background_score(config.beta, how.refine.refine)
    device = "cpu" if config.on_cluster else config.device
    labeller = open_labeller(run, how, device, guess, config.threshold, config.compile and not config.on_cluster)
    name = default_map(labeller, config.maps)
    mapping = ClassMapping.between(source.classes, run.classes)
    options = InferenceOptions(config.max_side, config.batch_size, config.workers, use_labels=config.use_labels)
    beta = guess
    if config.beta is None and name == "rcam":
        beta = score_without_masks(run, how, guess, labeller, source, every, mapping, options)
    band = _void_band(config, beta)
    output, settings = _output(config), _settings(config, run, how, beta, band, name)
    folder = mask_sink(output, config.sink, config.shard_size, settings, every)
    in_files = config.sink == "files"
    return LabelJobs(
        output=output, items=take_shard(every, config.shard) if in_files else every, folder=folder,
        settings=folder.about if isinstance(folder, ShardWriter) else settings, data=f"{source.spec} ({split})",
        planned=Ids(every) if in_files else (), command=resuming("label", config),
        workers=config.workers, overwrite=config.overwrite, shard=config.shard, reads=folders_of(source),
        source=source, labeller=labeller, how=how, classes=run.classes, mapping=mapping, options=options,
        name=name, beta=beta, void_band=band, soft_maps=config.soft_maps, device=config.device,
        compiled=config.compile,
    )  # fmt: skip


def _void_band(config: LabelConfig, beta: float) -> tuple[float, float] | None:
    """Between which scores pixels become void."""
    if config.void_margin is None:
        return config.void_band
    below, above = config.void_margin
    return round(max(0.0, beta - below), 4), round(min(1.0, beta + above), 4)


def _settings(
    config: LabelConfig,
    run: RunFolder,
    how: ResolvedMaps,
    beta: float,
    band: tuple[float, float] | None,
    name: MapName,
) -> dict[str, Any]:
    """Everything that decides what a mask looks like."""
    return {
        "weights_sha256": weights_digest(run),
        "classes": list(run.classes),
        "maps": name,
        "beta": beta,
        **how.settings(),
        "void_band": None if band is None else list(band),
        "max_side": config.max_side,
        "threshold": config.threshold,
        "use_labels": config.use_labels,
    }


def _images(source: Source, every: Sequence[Record]) -> Mapping[str, Callable[[], NDArray[np.uint8]]]:
    """What reads an image, by id."""
    if isinstance(every, LazyRecords):
        return _LazyImages(source, every)
    return {record.id: partial(_image, source, record) for record in every}


@dataclass(frozen=True)
class _LazyImages(Mapping[str, Callable[[], NDArray[np.uint8]]]):
    """Images by id, looked up as they are asked for."""

    source: Source
    records: LazyRecords

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[str]:
        return (record.id for record in self.records)

    def __getitem__(self, image_id: str) -> Callable[[], NDArray[np.uint8]]:
        record = self.records.find(image_id)
        if record is None:
            raise KeyError(image_id)
        return partial(_image, self.source, record)


def _image(source: Source, record: Record) -> NDArray[np.uint8]:
    return source.read(record).image


def _say_result(
    config: LabelConfig, jobs: LabelJobs, summary: JobSummary, from_scores: int, sheet: Path | None, progress: Progress
) -> None:
    progress.say(f"{summary.written} masks written to {jobs.folder.masks}")
    if from_scores:
        progress.say(
            f"{from_scores} without image labels: predicted labels instead, the classes with a score above "
            f"{config.threshold:g} (at least the best one)"
        )
    if sheet is not None:
        progress.say(f"least confident masks: {sheet}")
    if empty := without_object(summary.done, f"a lower background score may find one, --beta below {jobs.beta:g}"):
        progress.say(empty)
