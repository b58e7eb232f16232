"""`cpn evaluate`: mIoU of a run's maps, with the best background score, or of masks on disk."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.cam.inference import Prediction, default_map, open_labeller, predictions
from cpn_fast.cam.map_options import MapOptions
from cpn_fast.data.sources.base import folders_of
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import records_of, spread_evenly
from cpn_fast.data.types import Record, Source
from cpn_fast.files.apart import check_apart
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MASK_FOLDER, MaskFolder, seen_instead
from cpn_fast.files.member import ImageFile, Member
from cpn_fast.files.output_folder import check_is_folder
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.threads import thread_pool
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.image_size import warn_of_size
from cpn_fast.inference.options import check_positive
from cpn_fast.inference.reader import Failure, InferenceOptions
from cpn_fast.metrics.beta_sweep import BetaSweep, check_mask, iou_point
from cpn_fast.metrics.classification import classifier_scores
from cpn_fast.metrics.confusion import confusion_of, warn_without_foreground
from cpn_fast.metrics.image_counts import COUNTS_NAME, ImageCounts, ScoredImages, write_counts
from cpn_fast.metrics.maps import MULTI, MapName, scale_name
from cpn_fast.metrics.report import (
    METRICS_NAME,
    class_table,
    comparison_table,
    decimals,
    percent,
    plot_sweeps,
    point_values,
    run_metrics,
    run_table,
    write_metrics,
)
from cpn_fast.models.labeller import Labeller
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import DEFAULT_BETA, RunFolder
from cpn_fast.scoring.options import EvaluateConfig

PLOT_NAME = "beta_sweep.png"

log = logging.getLogger(__name__)


def run_evaluate(config: EvaluateConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Score runs or folders of masks; writes metrics.json (and, for a run, the plot of mIoU over beta) for each.

    Args:
        config: what to score, and how.
        progress: where bar and tables are shown.

    Returns:
        the content of the first target's metrics.json; all IoU values in 0..1.

    Raises:
        DataError: for a target or source that does not fit, an image or mask that cannot be read, a mask of another
            size than its prediction, or a split without any mask.
    """
    check_positive(max_side=config.max_side, batch_size=config.batch_size, workers=config.workers)
    if config.images is not None:
        check_positive(images=config.images)
    source = open_source(config.data)
    split, every = records_of(source, config.split)
    records = spread_evenly(every, config.images)
    config = dataclasses.replace(config, split=split)
    if config.output is not None:
        check_is_folder(config.output)
        check_apart(config.output, folders_of(source))
    if not config.others:
        return _evaluate_target(config, source, records, progress)
    if config.output is not None:
        raise DataError("--output is for one target; each of several gets its own metrics.json: leave it out")
    targets = (config.target, *config.others)
    scored = [
        _evaluate_target(dataclasses.replace(config, target=target), source, records, progress) for target in targets
    ]
    progress.say(comparison_table(scored))
    return scored[0]


def _evaluate_target(
    config: EvaluateConfig, source: Source, records: Sequence[Record], progress: Progress
) -> dict[str, Any]:
    if RunFolder(config.target).exists():
        return _evaluate_run(config, source, records, progress)
    return _evaluate_masks(config, source, records, progress)


def _evaluate_run(
    config: EvaluateConfig, source: Source, records: Sequence[Record], progress: Progress
) -> dict[str, Any]:
    run = RunFolder(config.target)
    wanted = MapOptions.of(config)
    how = wanted.resolved(run)
    labeller = open_labeller(run, how, config.device, 0.0, config.threshold)
    primary, classes = default_map(labeller), run.classes
    tally = Tally.of(labeller, len(classes))
    options = InferenceOptions(
        config.max_side, config.batch_size, config.workers,
        per_scale=True, with_mask=True, use_labels=config.use_labels,
    )  # fmt: skip
    mapping = ClassMapping.between(source.classes, classes)
    warn_of_size(run, records, config.max_side)
    stream = predictions(labeller, source, records, mapping, options)
    _say_begin(config, source, records)
    with progress.items("evaluate", len(records)) as advance:
        _count_all(stream, tally, advance)
    _need_masks(config, tally)
    about = {
        **_about(config, source, tally.sweeps[primary, MULTI].images, tally.without_mask),
        "classes": list(classes),
        **how.settings(),
        "max_side": config.max_side,
        "labels_from_scores": tally.from_scores,
        "classifier": tally.classifier(),
        "weights_sha256": weights_digest(run),
    }
    metrics = run_metrics(tally.sweeps, primary, classes, about)
    if metrics["miou"] is None:
        log.warning(
            "%s: no pixel of any class in the ground truth of %d images: all background would be perfect, so that no "
            "mIoU and no background score are taken from it (labelling keeps beta %g). Is 255, which means void, meant "
            "as foreground? Write 1..%d there",
            source.spec, about["images"], DEFAULT_BETA, len(source.classes),
        )  # fmt: skip
    output = config.output or config.target
    write_counts(output / COUNTS_NAME, tally.scored_images(records, classes))
    write_metrics(output / METRICS_NAME, metrics)
    plot_sweeps(output / PLOT_NAME, metrics, f"{config.target.name} on {source.spec} ({config.split})")
    progress.say(run_table(metrics))
    progress.say(class_table(metrics, f"IoU in %, {primary.upper()} multi-scale at beta {decimals(metrics['beta'])}"))
    progress.say(str(how))
    _say_counts(progress, config, about)
    progress.say(f"{output / METRICS_NAME}, {output / PLOT_NAME}")
    return metrics


def _say_begin(config: EvaluateConfig, source: Source, records: Sequence[Record]) -> None:
    log.info("scoring on %d images of split %r of %s", len(records), config.split, source.spec)


def _count_all(stream: Iterator[Prediction | Failure[Record]], tally: Tally, advance: Callable[[int], None]) -> None:
    """Count every prediction, each while the network works on the next."""
    with thread_pool(1, "count") as pool:
        counted: Future[None] | None = None
        for prediction in stream:
            if isinstance(prediction, Failure):
                raise DataError(f"{prediction.error}; a score needs every image of the split")
            if counted is not None:
                counted.result()
            counted = pool.submit(tally.add, prediction)
            advance(1)
        if counted is not None:
            counted.result()


@dataclass
class Tally:
    """Everything counted in the one pass over the data.

    Attributes:
        sweeps: a beta sweep for each map at each scale and multi-scale.
        without_mask: images without ground truth.
        from_scores: scored images without labels, for which the network's own scores stood in.
        ids: the scored images, as they came.
        scores: class probabilities [K] of the images that have labels.
        truth: their labels, bool [K].
    """

    sweeps: dict[tuple[MapName, str], BetaSweep]
    without_mask: int = 0
    from_scores: int = 0
    ids: list[str] = field(default_factory=list)
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    truth: list[NDArray[np.bool_]] = field(default_factory=list)

    @classmethod
    def of(cls, labeller: Labeller, num_classes: int) -> Tally:
        """An empty tally for the maps and scales that a labeller gives."""
        single = [scale_name(scale) for scale in labeller.scales]
        of: dict[MapName, list[str]] = {"cam": [*single, MULTI]}
        if labeller.refined:
            of["rcam"] = [MULTI] if labeller.refined_once else [*single, MULTI]
        keys = [(name, scale) for name, scales in of.items() for scale in scales]
        return cls({(name, scale): BetaSweep(num_classes, keep_images=scale == MULTI) for name, scale in keys})

    def add(self, prediction: Prediction) -> None:
        """Count one image. Raises DataError for a mask that does not fit its image."""
        if prediction.given is not None:
            self.scores.append(prediction.scores)
            self.truth.append(prediction.given)
        if prediction.mask is None:
            self.without_mask += 1
            return
        self.from_scores += prediction.given is None
        self.ids.append(prediction.record.id)
        where = str(prediction.record.mask_path or prediction.record.image_path)
        for (name, scale), sweep in self.sweeps.items():
            sweep.update_best(*prediction.best(name, scale), prediction.mask, where)

    def scored_images(self, records: Sequence[Record], classes: Sequence[str]) -> ScoredImages:
        """What was counted of each image, all scales together, in the order of the split."""
        place = {record.id: index for index, record in enumerate(records)}
        order = sorted(range(len(self.ids)), key=lambda index: place[self.ids[index]])
        maps: dict[str, ImageCounts] = {
            name: ImageCounts.of([sweep.per_image[index] for index in order], len(classes))
            for (name, scale), sweep in self.sweeps.items()
            if scale == MULTI
        }
        return ScoredImages(tuple(self.ids[index] for index in order), tuple(classes), maps)

    def classifier(self) -> dict[str, float | None]:
        """`map` and `f1` of the classifier where images have labels of their own."""
        if not self.scores:
            return {"map": None, "f1": None}
        return classifier_scores(np.stack(self.scores), np.stack(self.truth))


def _need_masks(config: EvaluateConfig, tally: Tally) -> None:
    if any(sweep.images for sweep in tally.sweeps.values()):
        return
    average = tally.classifier()["map"]
    known = "" if average is None else f" (the classifier's mean average precision there is {average:.3f})"
    raise DataError(
        f"{config.data}: none of the {tally.without_mask} images of split {config.split!r} has a mask{known}; mIoU "
        "needs ground truth: give a split that has masks"
    )


def _about(config: EvaluateConfig, source: Source, images: int, without_mask: int) -> dict[str, Any]:
    return {
        "target": str(config.target),
        "data": source.spec,
        "split": config.split,
        "images": images,
        "without_mask": without_mask,
    }


def _say_counts(progress: Progress, config: EvaluateConfig, about: dict[str, Any]) -> None:
    text = f"{config.target}: {about['images']} images scored"
    if config.images is not None:
        text += f" (at most {config.images} of the split, spread evenly)"
    if about["without_mask"]:
        text += f", {about['without_mask']} without ground truth excluded"
    if about.get("labels_from_scores"):
        text += f"; {about['labels_from_scores']} without image labels: scores above {config.threshold:g} stood in"
    average = about.get("classifier", {}).get("map")
    if average is not None:
        text += f"; classifier mAP {average:.3f}"
    progress.say(text)


def _evaluate_masks(
    config: EvaluateConfig, source: Source, records: Sequence[Record], progress: Progress
) -> dict[str, Any]:
    folder = _mask_folder(config.target)
    if config.output is None:
        _check_other_than_truth(config, folder, records)
    folder.warn_if_half_done()
    classes = folder.classes() or tuple(source.classes)
    mapping = ClassMapping.between(source.classes, classes)
    confusion = np.zeros((len(classes) + 1, len(classes) + 2), dtype=np.int64)
    each: dict[str, NDArray[np.int64]] = {}
    missing: list[str] = []
    without_truth = 0
    _say_begin(config, source, records)
    with progress.items("evaluate", len(records)) as advance:
        for record, counts in zip(records, _count_masks(source, records, folder, mapping, config.workers), strict=True):
            advance(1)
            if counts is None:
                without_truth += 1
            elif isinstance(counts, Path | Member):
                missing.append(str(counts))
            else:
                confusion += counts
                each[record.id] = counts
    _check_found(config, folder, len(records), without_truth, missing)
    about = {
        **_about(config, source, len(records) - without_truth - len(missing), without_truth),
        "classes": list(classes),
        "missing": len(missing),
        "void_share": float(confusion[:, -1].sum() / max(1, confusion.sum())),
    }
    metrics = {**point_values(iou_point(confusion), classes), "sweep": None, **about}
    warn_without_foreground(source.spec, confusion)
    output = config.output or config.target
    scored = {"masks": ImageCounts.of_confusions(list(each.values()))}
    write_counts(output / COUNTS_NAME, ScoredImages(tuple(each), tuple(classes), scored))
    write_metrics(output / METRICS_NAME, metrics)
    progress.say(class_table(metrics, f"IoU in %, mean {percent(metrics['miou'])}"))
    if missing:
        progress.say(f"{len(missing)} images with ground truth have no mask and are not scored")
    if about["void_share"]:
        progress.say(f"{percent(about['void_share'])}% of the pixels are void in the masks: counted as missed")
    _say_counts(progress, config, about)
    progress.say(str(output / METRICS_NAME))
    return metrics


def _mask_folder(target: Path) -> MaskFolder:
    folder = MaskFolder.find(target)
    if folder is None:
        hint = seen_instead(target)
        raise DataError(
            f"{target}: neither a run (config.json) nor a folder of masks ({MASK_FOLDER}/ID.png or ID.png); give the "
            "folder that `cpn train` or `cpn label` wrote"
            f"{hint}"
        )
    return folder


def _check_other_than_truth(config: EvaluateConfig, folder: MaskFolder, records: Sequence[Record]) -> None:
    """Raise DataError where the masks are the source's own, beside which the scores would be written."""
    own = next((r for r in records if r.mask_path and _same_file(folder.mask_path(r.id), r.mask_path)), None)
    if own is not None:
        raise DataError(
            f"{config.target}: its masks, such as {own.mask_path}, are the ground truth of {config.data} itself; give "
            "the folder that `cpn label`, `cpn refine` or `cpn segment predict` wrote, or --output for the scores"
        )


def _same_file(one: ImageFile, other: ImageFile) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one == other


def _count_masks(
    source: Source, records: Sequence[Record], folder: MaskFolder, mapping: ClassMapping, workers: int
) -> Iterator[NDArray[np.int64] | ImageFile | None]:
    """Per record: its confusion counts, or the path of the mask that is missing, or None without ground truth."""

    def count(record: Record) -> NDArray[np.int64] | ImageFile | None:
        truth = source.read(record, with_mask=True).mask
        if truth is None:
            return None
        path = folder.mask_path(record.id)
        if not folder.has(record.id):
            return path
        predicted = folder.read(record.id, mapping.num_classes)
        truth = mapping.mask(truth)
        check_mask(truth, predicted.shape, mapping.num_classes, f"{record.mask_path or record.image_path} and {path}")
        return confusion_of(truth, predicted, mapping.num_classes)

    chunk = 16 * workers  # map() would start on everything at once
    with thread_pool(workers, "count") as pool:
        for start in range(0, len(records), chunk):
            yield from pool.map(count, records[start : start + chunk])


def _check_found(
    config: EvaluateConfig, folder: MaskFolder, total: int, without_truth: int, missing: Sequence[str]
) -> None:
    with_truth = total - without_truth
    if not with_truth:
        raise DataError(
            f"{config.data}: none of the {total} images of split {config.split!r} has a mask; mIoU needs ground truth: "
            "give a split that has masks"
        )
    if missing and (len(missing) == with_truth or not config.allow_missing):
        raise DataError(
            f"{folder.masks}: {len(missing)} of {with_truth} images with ground truth have no mask there, the first "
            f"{missing[0]}; label them first"
            + ("" if len(missing) == with_truth else ", or score the rest with --allow-missing")
        )
