"""Validation metrics of AffinityNet: mIoU of a fixed subset's masks before and after the walk, and pictures of some."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpn_fast.config.training import AffinityConfig
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import spread_evenly
from cpn_fast.files.errors import DataError
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.metrics.beta_sweep import iou_point
from cpn_fast.metrics.confusion import confusion_of
from cpn_fast.metrics.report import finite
from cpn_fast.models.affinity_labels import alpha_of_beta
from cpn_fast.models.affinity_net import AffinityNet
from cpn_fast.refine.crf import Background, background_scores
from cpn_fast.refine.labelled_folder import LabelledFolder
from cpn_fast.refine.options import WALK_POWER, WALK_STEPS
from cpn_fast.refine.random_walk import WalkStep, resized_maps
from cpn_fast.training.task import ValidationMetrics
from cpn_fast.training.validation import (
    NUM_IMAGES,
    check_finite_maps,
    masks_beside,
    never,
    resized,
    training_mode_kept,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WalkCase:
    """One image to let walk.

    Attributes:
        image_id: its id.
        image: uint8 [h, w, 3].
        truth: uint8 [h, w] in the labelling's classes.
        values: uint8 [C], mask value of each channel of the scores.
        scores: float32 [1, C, h, w], background first.
    """

    image_id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    values: NDArray[np.uint8]
    scores: Tensor


class WalkValidator:
    """A fixed subset of the labelled images that have ground truth, kept in memory.

    Args:
        cases: the images.
        num_classes: K foreground classes.
    """

    def __init__(self, cases: Sequence[WalkCase], num_classes: int) -> None:
        self._cases, self._num_classes = list(cases), num_classes

    def evaluate(
        self, net: AffinityNet, device: torch.device, stopped: Callable[[], bool] = never
    ) -> ValidationMetrics | None:
        """Let the maps walk as `cpn refine --random-walk` does by default. The training mode is kept.

        Returns:
            values `maps_miou` (before) and `walk_miou` (None where no class occurs), `images`; and pictures of image,
            mask before, mask after and truth side by side. None once `stopped`, asked before each image, says so.

        Raises:
            NonFiniteError: for affinities that are not finite.
        """
        del device  # the network's own
        shape = (self._num_classes + 1, self._num_classes + 2)
        confusion = {name: np.zeros(shape, dtype=np.int64) for name in ("maps", "walk")}
        pictures = {}
        with training_mode_kept(net):
            step = WalkStep(net.eval(), "", WALK_STEPS, WALK_POWER, 1.0)
            for index, case in enumerate(self._cases):
                if stopped():
                    return None
                walked = step(case.image_id, case.image, case.scores)
                check_finite_maps("affinities", walked.numpy())
                masks = {"maps": _mask_of(case, case.scores), "walk": _mask_of(case, walked)}
                for name, mask in masks.items():
                    confusion[name] += confusion_of(case.truth, mask, self._num_classes)
                if index < NUM_IMAGES:
                    pictures[case.image_id] = masks_beside(case.image, *masks.values(), case.truth)
        figures = {f"{name}_miou": finite(iou_point(counts).miou) for name, counts in confusion.items()}
        return ValidationMetrics({"images": len(self._cases), **figures}, pictures)


def create_walk_validator(config: AffinityConfig, image_ids: Sequence[str]) -> WalkValidator | None:
    """The validator of a run: `val_images` images spread evenly over those that have ground truth in `data`.

    Images and maps are scaled to the middle of `augment`'s range of long sides, as training shows them.

    Args:
        config: `data`, `masks`, `beta`, `val_images` and `eval_every` are used.
        image_ids: the images that are trained on.

    Raises:
        DataError: for maps that are damaged, or classes of `data` that the labelling does not know.
    """
    if config.loop.eval_every <= 0 or config.loop.val_images <= 0 or not config.data:
        return None
    source, known = open_source(config.data), set(image_ids)
    records = {record.id: record for split in source.splits() for record in source.records(split)}
    masked = [record for record in records.values() if record.id in known and record.mask_path is not None]
    if not masked:
        log.warning("no validation metrics: no image that is trained on has a mask in %s", config.data)
        return None
    try:
        folder = LabelledFolder.open(config.masks, config.data)
    except DataError as error:
        log.warning("no validation metrics: %s", error)
        return None
    mapping = ClassMapping.between(source.classes, folder.classes)
    background = Background("power", alpha_of_beta(folder.beta(config.beta)))
    long_side, cases = round(sum(config.augment.resize_range()) / 2), []
    for record in spread_evenly(masked, config.loop.val_images):
        sample = resized(source.read(record, with_mask=True), long_side)
        if sample.mask is None:
            continue
        soft = folder.masks.read_soft(record.id, len(folder.classes))
        scores = resized_maps(background_scores(soft.maps, background), (sample.mask.shape[0], sample.mask.shape[1]))
        values = np.concatenate([[0], soft.classes]).astype(np.uint8)
        cases.append(WalkCase(record.id, sample.image, mapping.mask(sample.mask), values, scores))
    return WalkValidator(cases, len(folder.classes)) if cases else None


def _mask_of(case: WalkCase, scores: Tensor) -> NDArray[np.uint8]:
    return case.values[scores[0].argmax(dim=0).numpy()]
