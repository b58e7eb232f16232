"""What labelling does to one image: from pixels to a mask and what is to be said of it. Pure: no files, no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.cam.inference import Prediction, default_map, open_labeller, predictions
from cpn_fast.cam.map_options import MapOptions
from cpn_fast.config.refine import Refine, RefineAt
from cpn_fast.data.types import VOID, Record, Sample
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import foreground_share
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.options import check_positive
from cpn_fast.inference.reader import Failure, InferenceOptions
from cpn_fast.metrics.beta_sweep import mask_at
from cpn_fast.metrics.confidence import map_confidence
from cpn_fast.metrics.maps import MULTI, MapName
from cpn_fast.models.labeller import Labeller
from cpn_fast.runs.folder import RunFolder

_ONE = "image"


@dataclass(frozen=True)
class MaskRules:
    """How the maps of an image become its mask.

    Attributes:
        classes: the K foreground classes.
        name: the map that the mask is made of.
        beta: background score.
        void_band: scores within become void; None = none.
    """

    classes: tuple[str, ...]
    name: MapName
    beta: float
    void_band: tuple[float, float] | None = None


@dataclass(frozen=True)
class LabelSettings:
    """Everything that decides what `label_image` gives. Made by `label_settings`.

    Attributes:
        labeller: the network with its scales, on its device.
        rules: from maps to the mask.
        max_side: longer images are reduced to this long side in pixels first, and the mask enlarged back.
    """

    labeller: Labeller
    rules: MaskRules
    max_side: int = 1024


def label_settings(
    run: str | Path,
    *,
    scales: Sequence[float] | None = None,
    flip: bool = True,
    beta: float | None = None,
    void_band: tuple[float, float] | None = None,
    threshold: float = 0.5,
    max_side: int = 1024,
    refine: Refine | None = None,
    refine_at: RefineAt | None = None,
    device: str = "auto",
) -> LabelSettings:
    """The settings of `cpn label`, with the network in memory.

    Args:
        run: run folder of a CAM network.
        scales: factors of the image's size; None = those of `cpn label`.
        flip: also run the mirrored image.
        beta: background score, 0..1; None = as `cpn label`.
        void_band: scores within become void.
        threshold: class probability above which a class counts as present where no labels are given.
        max_side: longer images are reduced to this long side in pixels first.
        refine: "raw", "learnt", "pixels", "pixels-raw" or "none"; None = as `cpn label`.
        refine_at: "fused" or "scale"; None = as `cpn label`.
        device: "auto", "cpu" or "cuda".

    Raises:
        DataError: for an option out of range or that does not fit the run, or a run without weights.
    """
    check_positive(max_side=max_side)
    folder = RunFolder(run)
    options = MapOptions(None if scales is None else tuple(scales), flip=flip, refine=refine, refine_at=refine_at)
    how = options.resolved(folder)
    score = folder.background_score(beta, how.refine.refine)
    labeller = open_labeller(folder, how, device, score, threshold)
    return LabelSettings(labeller, MaskRules(folder.classes, default_map(labeller), score, void_band), max_side)


def label_image(
    image: NDArray[np.uint8],  # [H, W, 3]
    labels: Sequence[str] | None,
    settings: LabelSettings,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The mask of one image: the same as that of `cpn label` with these settings, bit for bit on one device.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: names of the classes in it; None lets the network's scores stand in.
        settings: see `label_settings`.

    Returns:
        The mask, uint8 [H, W], 0 background, 1..K classes, 255 void; and what the manifest says of it: `labels`,
        `labels_from` ("image" or "scores"), `foreground` and `confidence` in 0..1, `width` and `height` in pixels,
        with a void band also `above_beta`, the share of pixels whose score is above the background score.

    Raises:
        DataError: for another array, a name that is no class, or where the network gives NaN or infinity.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"image: {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    classes = settings.rules.classes
    if unknown := [name for name in labels or () if name not in classes]:
        raise DataError(f"labels: {unknown[0]!r} is no class of the network; expected some of {', '.join(classes)}")
    present = None if labels is None else tuple(sorted({classes.index(name) for name in labels}))
    source = OneImage(image, present, classes)
    options = InferenceOptions(settings.max_side, workers=1)
    mapping = ClassMapping.between(classes, classes)
    (found,) = predictions(settings.labeller, source, [source.record], mapping, options, only=settings.rules.name)
    if isinstance(found, Failure):
        raise DataError(found.error)
    return mask_and_entry(found, settings.rules)


def mask_and_entry(prediction: Prediction, rules: MaskRules) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The mask uint8 [H, W] of what the network said of an image, and what the manifest says of it."""
    best, score = prediction.best(rules.name)
    mask = mask_at(best, score, rules.beta)
    if rules.void_band is not None:
        low, high = np.float32(rules.void_band[0]), np.float32(rules.void_band[1])
        mask[(score >= low) & (score <= high)] = VOID
    said = {
        "width": mask.shape[1],
        "height": mask.shape[0],
        "labels": [rules.classes[number] for number in prediction.classes],
        "labels_from": "scores" if prediction.given is None else "image",
        "foreground": foreground_share(mask),
        "confidence": round(map_confidence(prediction.maps[rules.name, MULTI], rules.beta), 4),
    }
    if rules.void_band is not None:
        said["above_beta"] = round(float(np.mean(score > np.float32(rules.beta))), 4)
    return mask, said


class OneImage:
    """A source of one image in memory."""

    spec = "memory:"

    def __init__(self, image: NDArray[np.uint8], present: tuple[int, ...] | None, classes: tuple[str, ...]) -> None:
        self.image, self.classes = image, classes
        self.record = Record(_ONE, Path(_ONE), present)

    def splits(self) -> tuple[str, ...]:
        """The only split."""
        return (_ONE,)

    def records(self, split: str) -> Sequence[Record]:
        """The image."""
        del split
        return (self.record,)

    def read(self, record: Record, with_mask: bool = False) -> Sample:
        """The image, without ground truth."""
        del with_mask
        return Sample(record, self.image, None)
