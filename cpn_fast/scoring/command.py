"""`cpn evaluate`: mIoU of a run's maps, with the best background score, or of masks on disk."""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.cam.inference import default_map, open_labeller
from cpn_fast.cam.map_options import MapOptions
from cpn_fast.data.places import Places
from cpn_fast.data.sources.base import folders_of
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import records_of, spread_evenly
from cpn_fast.data.types import Record, Source
from cpn_fast.files.apart import check_apart
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.jobs import Entry
from cpn_fast.files.mask_folder import MASK_FOLDER, MaskFolder, seen_instead
from cpn_fast.files.member import ImageFile
from cpn_fast.files.output_folder import check_is_folder
from cpn_fast.files.packed import PackedTexts
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.counting import counted
from cpn_fast.inference.image_size import warn_of_size
from cpn_fast.inference.options import check_positive
from cpn_fast.inference.reader import InferenceOptions
from cpn_fast.metrics.beta_sweep import iou_point
from cpn_fast.metrics.confusion import warn_without_foreground
from cpn_fast.metrics.image_counts import COUNTS_NAME, ImageCounts, ScoredImages, write_counts
from cpn_fast.metrics.maps import MULTI
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
from cpn_fast.runs.background import BY_MAPS
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder
from cpn_fast.scoring.map_counts import MapCounts, Tally
from cpn_fast.scoring.mask_counts import MaskCounts
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
    engine = config.open_engine()
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
    with engine.session():
        scored = [
            _evaluate_target(dataclasses.replace(config, target=target), source, records, progress)
            for target in targets
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
    device = "cpu" if config.on_cluster else config.device
    labeller = open_labeller(run, how, device, 0.0, config.threshold)
    primary, classes = default_map(labeller), run.classes
    tally = Tally.of(labeller, len(classes))
    options = InferenceOptions(
        config.max_side, config.batch_size, config.workers,
        per_scale=True, with_mask=True, use_labels=config.use_labels,
    )  # fmt: skip
    mapping = ClassMapping.between(source.classes, classes)
    warn_of_size(run, records, config.max_side)
    work = MapCounts(source=source, labeller=labeller, mapping=mapping, options=options, device=config.device)
    _say_begin(config, source, records)
    with closing(counted(work, records, config.open_engine(), progress)) as entries:
        for entry in entries:
            tally.add(entry)
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
            source.spec, about["images"], BY_MAPS[how.refine.refine], len(source.classes),
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
    found = _Found(Places(records), np.zeros((len(classes) + 1, len(classes) + 2), dtype=np.int64))
    work = MaskCounts(workers=config.workers, source=source, folder=folder, mapping=mapping)
    _say_begin(config, source, records)
    with closing(counted(work, records, config.open_engine(), progress)) as entries:
        each = ImageCounts.of_confusions(found.matrices(entries))
    missing = [path for _, path in sorted(found.missing)]
    without_truth, confusion = found.without_truth, found.confusion
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
    scored = np.frombuffer(found.scored, np.uint32) if found.scored else np.zeros(0, np.uint32)
    ids = PackedTexts(records[place].id for place in np.sort(scored).tolist())
    each = each.take(np.argsort(scored))
    write_counts(output / COUNTS_NAME, ScoredImages(ids, tuple(classes), {"masks": each}))
    write_metrics(output / METRICS_NAME, metrics)
    progress.say(class_table(metrics, f"IoU in %, mean {percent(metrics['miou'])}"))
    if missing:
        progress.say(f"{len(missing)} images with ground truth have no mask and are not scored")
    if about["void_share"]:
        progress.say(f"{percent(about['void_share'])}% of the pixels are void in the masks: counted as missed")
    _say_counts(progress, config, about)
    progress.say(str(output / METRICS_NAME))
    return metrics


@dataclass
class _Found:
    """What was counted of masks, all together.

    Attributes:
        places: of the images in their split.
        confusion: int64 [C, C + 1].
        scored: places of the scored images, as they came.
        missing: place of the image and path of each mask that is not there.
        without_truth: images without ground truth.
    """

    places: Places
    confusion: NDArray[np.int64]
    scored: array[int] = field(default_factory=lambda: array("I"))
    missing: list[tuple[int, str]] = field(default_factory=list)
    without_truth: int = 0

    def matrices(self, entries: Iterable[Entry]) -> Iterator[NDArray[np.int64]]:
        """Add entries of `MaskCounts`; gives the counts of the scored ones on."""
        for entry in entries:
            counts = entry["counts"]
            if counts is not None:
                self.confusion += counts
                self.scored.append(self.places.of(entry["id"]))
                yield counts
            elif entry["missing"] is None:
                self.without_truth += 1
            else:
                self.missing.append((self.places.of(entry["id"]), entry["missing"]))


def _mask_folder(target: Path) -> MaskFolder:
    folder = find_masks(target)
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
