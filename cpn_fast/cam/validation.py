"""Validation metrics: mIoU of CAM and RCAM and the classifier's mAP on a fixed subset, and pictures of a few images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cpn_fast.config.refine import PER_SCALE, PIXELS
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.sources.spread import spread_evenly
from cpn_fast.data.types import Record, Sample, Source
from cpn_fast.files.chosen import choose
from cpn_fast.files.palette import voc_palette
from cpn_fast.metrics.beta_sweep import BetaSweep
from cpn_fast.metrics.classification import classifier_scores
from cpn_fast.models.cam import CamNet
from cpn_fast.models.labeller import Labeller
from cpn_fast.training.task import ValidationMetrics
from cpn_fast.training.validation import (
    NUM_IMAGES,
    check_finite_maps,
    never,
    resized,
    side_by_side,
    training_mode_kept,
    warn_without_foreground,
)

log = logging.getLogger(__name__)


class CamValidator:
    """A fixed validation subset, read once and kept in memory.

    Args:
        source: the data.
        records: the subset, images with labels.
        config: `augment.crop` is the long side in pixels, `options.map_norm` the normalisation.
    """

    def __init__(self, source: Source, records: Sequence[Record], config: TrainConfig) -> None:
        self.num_classes = len(source.classes)
        self.map_norm = config.options.map_norm
        self._samples = [resized(source.read(record, with_mask=True), config.augment.crop) for record in records]

    @property
    def masks(self) -> list[NDArray[np.uint8] | None]:
        """The ground truth of each image, uint8 [h, w]; None without."""
        return [sample.mask for sample in self._samples]

    @torch.no_grad()
    def evaluate(
        self, net: CamNet, device: torch.device, stopped: Callable[[], bool] = never
    ) -> ValidationMetrics | None:
        """Score the network at a single scale. Its training mode is as before afterwards.

        Args:
            net: the network.
            device: where it is.
            stopped: asked before each image.

        Returns:
            values `cam_miou`, `cam_beta`, `rcam_miou`, `rcam_beta` (None without a pixel of a class in any mask; of a
            network without refinement the last two are left out), `map`, `f1`, `images`; and pictures of image, CAM,
            RCAM and, where there is one, the mask side by side. None once `stopped` says so.

        Raises:
            NonFiniteError: for maps or scores that are not finite.
        """
        refined = net.refinement != "none" or net.pixels is not None
        sweeps = {name: BetaSweep(self.num_classes) for name in ("cam", "rcam")[: 2 if refined else 1]}
        scores, pictures = [], {}
        with training_mode_kept(net):
            refine = PER_SCALE if net.pixels is None else PIXELS
            labeller = Labeller(net, scales=(1.0,), flip=False, map_norm=self.map_norm, refine=refine)
            for index, sample in enumerate(self._samples):
                if stopped():
                    return None
                images = torch.from_numpy(sample.image)[None].to(device)
                labels = torch.from_numpy(np.asarray(sample.labels, dtype=np.float32))[None].to(device)
                out = labeller(images, labels)
                maps = {name: getattr(out, name)[0].float().cpu().numpy() for name in sweeps}
                scores.append(out.scores[0].float().cpu().numpy())
                check_finite_maps("class maps or scores", scores[-1], *maps.values())
                for name, sweep in sweeps.items():
                    sweep.update(maps[name], sample.mask, sample.record.id)
                if index < NUM_IMAGES:
                    pictures[sample.record.id] = picture(sample, *maps.values())
        truth = np.stack([np.asarray(sample.labels) > 0 for sample in self._samples])
        values: dict[str, Any] = {"images": len(self._samples), **classifier_scores(np.stack(scores), truth)}
        for name, sweep in sweeps.items():
            best = sweep.best() if sweep.has_foreground else None
            values |= {f"{name}_miou": best and best.miou, f"{name}_beta": best and best.beta}
        return ValidationMetrics(values, pictures)


def create_validator(source: Source, config: TrainConfig, train_records: Sequence[Record]) -> CamValidator | None:
    """The validator of a run: `val_images` images spread evenly over the validation split, those with masks if any.

    Without a validation split they are training images.

    Args:
        source: the data.
        config: `val_split`, `val_images` and `eval_every` are used.
        train_records: the training split.

    Raises:
        DataError: if `config.val_split` is no split.
    """
    if config.loop.eval_every <= 0 or config.loop.val_images <= 0:
        return None
    split = config.val_split or ("val" if "val" in source.splits() else None)
    every = source.records(split) if split else train_records
    records = choose(every, lambda record: record.labels is not None)
    if not records:
        log.warning("no validation metrics: no image of %s has labels; name another split with --val-split", split)
        return None
    if not split:
        log.warning("no validation split: the validation metrics are of training images")
    validator = CamValidator(source, spread_evenly(records, config.loop.val_images), config)
    warn_without_foreground(validator.masks)
    return validator


def picture(sample: Sample, *maps: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Image, maps (each pixel's highest class as a heat map over the image) and mask, side by side.

    Args:
        sample: image uint8 [H, W, 3] and, if there is one, mask [H, W].
        *maps: CAM and, where there is one, RCAM, float [K, H, W] in 0..1.

    Returns:
        uint8 [h, n w, 3] of n tiles, with max(h, w) at most 320.
    """
    tiles = [sample.image]
    for each in maps:
        heat = cv2.applyColorMap((each.max(axis=0).clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)
        tiles.append(cv2.addWeighted(sample.image, 0.5, cv2.cvtColor(heat, cv2.COLOR_BGR2RGB), 0.5, 0))
    if sample.mask is not None:
        tiles.append(voc_palette()[sample.mask])
    return side_by_side(tiles)
