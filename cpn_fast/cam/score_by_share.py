"""The background score of a pixel head where no ground truth tells it: as much object as its teacher's maps show.

The head learns the pixels that its teacher is sure of, and what lies between may go either way: at another learning
rate the best score was 0.69 instead of 0.49, and 0.5 cost 4 points of mIoU. The share of the images that is object does
not change from one round to the next, and the teacher's maps tell it well (docs/results/study.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cpn_fast.cam.inference import Prediction, predictions
from cpn_fast.cam.map_options import ResolvedMaps
from cpn_fast.config.refine import OF_PIXEL_HEAD
from cpn_fast.data.sources.spread import spread
from cpn_fast.data.types import Record, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.reader import Failure, InferenceOptions
from cpn_fast.metrics.beta_sweep import BETAS
from cpn_fast.models.labeller import Labeller
from cpn_fast.runs.background import read_found, scored_beta, write_found
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder

SAMPLE = 100
"""Images that are looked at, spread evenly over the split."""

LEAST = 16
"""With fewer of them nothing is found."""

log = logging.getLogger(__name__)


def score_without_masks(
    run: RunFolder,
    how: ResolvedMaps,
    usual: float,
    labeller: Labeller,
    source: Source,
    records: Sequence[Record],
    mapping: ClassMapping,
    options: InferenceOptions,
) -> float:
    """The background score of RCAMs, found on the images to be labelled where the run was never scored.

    Only a pixel head's is: that of other maps hardly changes. It is kept in the run's folder for single images and
    exports.

    Args:
        run: of the network.
        how: how its maps are made.
        usual: the run's score of these maps, where none is found here.
        labeller: makes them.
        source: reads the records.
        records: the images.
        mapping: the source's classes in the network's order.
        options: of the labelling.

    Returns:
        0..1.
    """
    if how.refine.refine not in OF_PIXEL_HEAD or scored_beta(run.path, how.refine.refine) is not None:
        return usual
    about = {
        **how.settings(),
        "weights_sha256": weights_digest(run),
        "data": source.spec,
        "images": len(records),
        "pixel_masks": str(run.config.pixel_masks),
    }
    known = read_found(run.path)
    if known is not None and {**known, **about} == known:
        return usual
    sample = spread(records, SAMPLE)
    shares = teacher_shares(run, sample)
    if len(shares) < LEAST:
        return usual
    looked_at = [record for record in sample if record.id in shares]
    log.info("background score: looking at %d images, of which no ground truth is needed", len(looked_at))
    found = _score_of(predictions(labeller, source, looked_at, mapping, options, only="rcam"), shares)
    if found is None:
        return usual
    beta, share = found
    log.info(
        "background score %g: above it lies as much of these images, %.1f%%, as in the maps that labelled the "
        "pixels of %s (with ground truth for some images `cpn evaluate` finds the best)",
        beta, 100 * share, run.path,
    )  # fmt: skip
    _keep(run, beta, {**about, "share": round(share, 4)})
    return beta


def _score_of(items: Iterable[Prediction | Failure[Record]], shares: Mapping[str, float]) -> tuple[float, float] | None:
    """The score, and the share of all pixels that was above the teacher's; None where no image shows a class."""
    pixels, above = np.zeros(len(BETAS) + 1, np.int64), 0.0
    for item in items:
        if isinstance(item, Prediction) and len(item.classes):
            score = item.best("rcam")[1]
            pixels += pixels_by_score(score)
            above += shares[item.record.id] * score.size
    if not pixels.any():
        return None
    share = above / int(pixels.sum())
    return score_at_share(pixels, share), share


def teacher_shares(run: RunFolder, records: Sequence[Record]) -> dict[str, float]:
    """Of each image the share whose score was above the background score in the maps that labelled its pixels.

    Args:
        run: learned the pixels.
        records: the images; those of which nothing is known are left out.
    """
    masks = run.config.pixel_masks
    folder = find_masks(masks) if masks is not None and masks.is_dir() else None
    if folder is None:
        return {}
    wanted = {record.id for record in records}
    known = {entry["id"]: entry.get("above_beta") for entry in folder.manifest().stream() if entry["id"] in wanted}
    return {image: float(share) for image, share in known.items() if isinstance(share, int | float)}


def pixels_by_score(score: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many pixels have a score above so many of `BETAS`.

    Args:
        score: float32, any shape.

    Returns:
        int64 [102]: above none of them, above the first, ..., above all.
    """
    return np.bincount(np.searchsorted(BETAS, score.reshape(-1), side="left"), minlength=len(BETAS) + 1)


def score_at_share(pixels: NDArray[np.int64], share: float) -> float:
    """The background score 0, 0.01, ..., 1 above which nearest to a share of the pixels lies; the least such one.

    Args:
        pixels: int64 [102], of `pixels_by_score`.
        share: 0..1.
    """
    above = 1 - np.cumsum(pixels)[:-1] / pixels.sum()
    return round(int(np.abs(above - share).argmin()) / 100, 2)


def _keep(run: RunFolder, beta: float, about: Mapping[str, object]) -> None:
    """In the run's folder, if that may be written to."""
    try:
        write_found(run.path, beta, about)
    except (OSError, DataError) as error:
        log.info("%s: the background score is not kept there (%s)", run.path, error)
