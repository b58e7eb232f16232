"""Labellers of run folders: the network once in memory, one photograph after the other through it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cpn_fast.api.images import ImageLabeller, LabelledImage
from cpn_fast.cam.inference import Prediction, default_map, open_labeller, predictions
from cpn_fast.cam.map_options import MapOptions
from cpn_fast.cam.one_image import OneImage
from cpn_fast.config.refine import Refine
from cpn_fast.config.scales import SEGMENT_SCALES
from cpn_fast.files.max_side import enlarge
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.options import check_positive
from cpn_fast.inference.reader import InferenceOptions
from cpn_fast.metrics.beta_sweep import mask_at
from cpn_fast.metrics.maps import MULTI
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.inference import Segmentation, open_segmenters, segmentations


class CamLabeller(ImageLabeller):
    """Labels with a CAM network as `cpn label` does. Arguments as of `Run.labeller`."""

    def __init__(
        self,
        run: RunFolder,
        scales: Sequence[float] | None,
        flip: bool,
        beta: float | None,
        threshold: float | None,
        max_side: int,
        device: str,
        refine: Refine | None = None,
    ) -> None:
        check_positive(max_side=max_side)
        self.classes = run.classes
        how = MapOptions(scales, flip=flip, refine=refine).resolved(run)
        self._beta = run.background_score(beta, how.refine.refine)
        self._labeller = open_labeller(run, how, device, self._beta, 0.5 if threshold is None else threshold)
        self._map = default_map(self._labeller)
        self._mapping = ClassMapping.between(self.classes, self.classes)
        self._options = InferenceOptions(max_side, workers=1)

    def _label(self, image: NDArray[np.uint8], present: tuple[int, ...] | None) -> LabelledImage:
        source = OneImage(image, present, self.classes)
        (found,) = predictions(self._labeller, source, [source.record], self._mapping, self._options)
        assert isinstance(found, Prediction)
        return LabelledImage(
            mask=mask_at(*found.best(self._map), self._beta),
            maps=found.at_image_size(self._map, MULTI),
            scores=found.scores,
            classes=self.classes,
            labels=tuple(self.classes[index] for index in found.classes),
        )


class SegmentationLabeller(ImageLabeller):
    """Labels with a segmentation network as `cpn segment predict` does. Arguments as of `Run.labeller`."""

    def __init__(self, run: RunFolder, scales: Sequence[float] | None, flip: bool, max_side: int, device: str) -> None:
        check_positive(max_side=max_side)
        self.classes = run.classes
        self._segmenters = open_segmenters(run, {MULTI: (scales or SEGMENT_SCALES, flip)}, device)
        self._mapping = ClassMapping.between(self.classes, self.classes)
        self._options = InferenceOptions(max_side, workers=1)

    def _label(self, image: NDArray[np.uint8], present: tuple[int, ...] | None) -> LabelledImage:
        source = OneImage(image, present, self.classes)
        (found,) = segmentations(self._segmenters, source, [source.record], self._mapping, self._options, True)
        assert isinstance(found, Segmentation) and found.probabilities is not None
        mask, probabilities = found.mask(MULTI), found.probabilities.numpy()
        active = tuple(int(value) - 1 for value in np.unique(mask) if value) if present is None else present
        return LabelledImage(
            mask=mask,
            maps=enlarge(probabilities[[index + 1 for index in active]], *found.size),
            scores=probabilities[1:].max(axis=(1, 2)),
            classes=self.classes,
            labels=tuple(self.classes[index] for index in active),
        )
