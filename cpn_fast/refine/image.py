"""Refinement of one labelled image: from its files through steps (random walk, dense CRF) to a mask and an entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpn_fast.data.types import VOID
from cpn_fast.device import threads_shared_by
from cpn_fast.files.digest import file_digest
from cpn_fast.files.disk_space import FILE_BYTES, MASK_BYTES, SOFT_BYTES, USUAL_PIXELS
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, error_entry
from cpn_fast.files.mask_folder import check_size, foreground_share
from cpn_fast.files.mask_jobs import MaskJobs
from cpn_fast.files.max_side import enlarge
from cpn_fast.files.member import ImageFile
from cpn_fast.files.soft_maps import SoftMaps
from cpn_fast.refine.crf import Background, background_scores
from cpn_fast.refine.labelled_folder import LabelledFolder
from cpn_kernels.ops.dense_crf import probabilities_from_labels

SOFT_BETA = 0.5
"""Background score at which refined soft maps give the refined mask."""


class RefinementStep(Protocol):
    """One refinement of an image's scores."""

    def settings(self) -> dict[str, Any]:
        """What decides its result beside its input, JSON-able."""

    def on(self, device: str) -> RefinementStep:
        """The same on another device: "auto" (a GPU where there is one), "cpu" or "cuda"."""

    def __call__(self, image_id: str, image: NDArray[np.uint8], scores: Tensor) -> Tensor:
        """Scores float32 [1, C, h, w] >= 0, background first, to the same, of this or of image size."""


@dataclass(frozen=True)
class InitialScores:
    """What the steps begin with.

    Attributes:
        background: stands against the soft maps; None = begin with the hard masks.
        gt_prob: label confidence: the probability that a label of a hard mask is right.
    """

    background: Background | None
    gt_prob: float

    def settings(self) -> dict[str, Any]:
        """What decides the scores beside the files, JSON-able."""
        if self.background is None:
            return {"unary": "hard masks", "gt_prob": self.gt_prob}
        return {"unary": "soft maps", "background": self.background.rule, "value": self.background.value}


@dataclass(frozen=True)
class Scores:
    """What an image's files say before the steps.

    Attributes:
        values: uint8 [C], mask value of each channel: 0, then the present classes.
        scores: float32 [1, C, h, w] >= 0, smaller than the image where `--max-side` reduced it.
        mask: uint8 [H, W], the mask before the steps.
    """

    values: NDArray[np.uint8]
    scores: Tensor
    mask: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class RefineJobs(MaskJobs[Mapping[str, Any], Mapping[str, Any]]):
    """Files of a labelling to refined masks; the images are the lines of its manifest.

    Attributes:
        labelling: what is refined.
        initial_scores: what the steps begin with.
        steps: one after the other.
        soft_maps: also write the refined scores as class maps (see `refined_maps`).
        device: on which a worker lets the scores walk, "auto", "cpu" or "cuda".
        shares_threads: a worker does as many images at a time as it has threads, instead of `workers`.
    """

    verb: ClassVar[str] = "refine"
    participle: ClassVar[str] = "refined"
    needed_to: ClassVar[str] = "refined"

    labelling: LabelledFolder
    initial_scores: InitialScores
    steps: tuple[RefinementStep, ...]
    soft_maps: bool = False
    device: str = "auto"
    shares_threads: bool = False

    def source_path(self, image_id: str) -> Path:
        """The file that the refinement of an image begins with."""
        masks = self.labelling.masks
        return masks.mask_file(image_id) if self.initial_scores.background is None else masks.soft_path(image_id)

    def id_of(self, item: Mapping[str, Any]) -> str:
        """The labelling's id."""
        return item["id"]

    def image_of(self, item: Mapping[str, Any]) -> ImageFile:
        """Where the labelling found it, or the source that was given."""
        return self.labelling.image_path(item)

    def to_send(self) -> Self:
        """Without the labelling's lines, of which a worker gets those of its images."""
        return replace(super().to_send(), labelling=replace(self.labelling, entries=()))

    def on_worker(self) -> Self:
        """With the networks of its steps on the device there."""
        steps = tuple(step.on(self.device) for step in self.steps)
        return replace(self, steps=steps, workers=torch.get_num_threads() if self.shares_threads else self.workers)

    def is_done(self, item: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
        """Whether the files are there and their input is unchanged."""
        digest = file_digest(self.source_path(item["id"]))
        return self.folder.has(item["id"], self.soft_maps) and digest in (None, entry.get("input_sha256"))

    def bytes_needed(self, todo: Sequence[Mapping[str, Any]]) -> float:
        """By the sizes that the labelling has recorded."""
        pixels = sum(entry.get("width", 0) * entry.get("height", 0) or USUAL_PIXELS for entry in todo)
        return pixels * (MASK_BYTES + (SOFT_BYTES if self.soft_maps else 0)) + FILE_BYTES * len(todo)

    def prepare(self) -> None:
        """The labelmap."""
        self.folder.write_labelmap(self.labelling.classes)

    def about(self) -> str:
        """What the steps begin with, and their numbers."""
        background = self.initial_scores.background
        if background is None:
            begin = f"hard masks ({self.initial_scores.gt_prob:g} sure, void unsure)"
        else:
            begin = f"soft maps, background {background.rule} {background.value:.4g}"
        numbers = [(key, value) for step in self.steps for key, value in step.settings().items()]
        return ", ".join([begin, *(f"{key} {value:g}" for key, value in numbers if not key.endswith("256"))])

    def threads(self) -> AbstractContextManager[object]:
        """The steps of several images share the cores."""
        return threads_shared_by(self.workers)

    def work(self, item: Mapping[str, Any]) -> Entry:
        """Refine one image and write its mask; raises also where a step's numbers do not fit the image."""
        image_id, path = item["id"], self.labelling.image_path(item)
        try:
            digest = file_digest(self.source_path(image_id))
            image = self.labelling.read_image(item)
            before = self._read(image_id)
            check_size(self.source_path(image_id), before.mask.shape, path, image)
        except DataError as error:
            return error_entry(image_id, path, str(error))
        scores = self._stepped(image_id, image, before)
        if not bool(torch.isfinite(scores).all()):
            reason = "the refined scores hold NaN or infinity: did the training of AffinityNet diverge?"
            return error_entry(image_id, path, f"{path}: {reason}")
        mask = self._write(image_id, before, scores)
        return {
            **self.folder.describe(image_id, path, mask),
            "labels": item.get("labels"),
            "labels_from": item.get("labels_from"),
            "foreground": foreground_share(mask),
            **({"confidence": item["confidence"]} if "confidence" in item else {}),  # of the labelling
            "changed": round(float(np.mean(mask != before.mask)), 4),
            "input_sha256": digest,
            "settings": step_settings(self.initial_scores, self.steps),
        }

    def _stepped(self, image_id: str, image: NDArray[np.uint8], before: Scores) -> Tensor:
        """The scores after the steps."""
        scores = before.scores
        if len(before.values) > 1:
            for step in self.steps:
                scores = step(image_id, image, scores)
        return scores

    def _write(self, image_id: str, before: Scores, scores: Tensor) -> NDArray[np.uint8]:
        """Write and return the mask of an image."""
        decided = len(before.values) == 1  # background alone: nothing that a step could decide
        mask = before.mask if decided else _mask_of(before.values, scores, before.mask.shape)
        soft = None
        if self.soft_maps:
            soft = SoftMaps(before.values[1:], refined_maps(scores), (mask.shape[0], mask.shape[1]))
        self.folder.write(image_id, mask, soft)
        return mask

    def _read(self, image_id: str) -> Scores:
        masks, num_classes = self.labelling.masks, len(self.labelling.classes)
        if self.initial_scores.background is not None:
            soft = masks.read_soft(image_id, num_classes, ", or take the hard masks with --hard")
            values = np.concatenate([[0], soft.classes]).astype(np.uint8)
            scores = background_scores(soft.maps, self.initial_scores.background)
            return Scores(values, scores, _mask_of(values, scores, soft.size))
        mask = masks.read(image_id, num_classes)
        values = np.union1d([0], mask[mask != VOID]).astype(np.uint8)
        channel = np.full(256, VOID, dtype=np.uint8)
        channel[values] = np.arange(len(values))
        labels = torch.from_numpy(channel[mask])[None]
        return Scores(values, probabilities_from_labels(labels, len(values), self.initial_scores.gt_prob), mask)


def step_settings(initial_scores: InitialScores, steps: Sequence[RefinementStep]) -> dict[str, Any]:
    """What decides a refined mask beside its input, JSON-able."""
    merged = initial_scores.settings()
    for step in steps:
        merged |= step.settings()
    return merged


def refined_maps(scores: Tensor) -> NDArray[np.float32]:
    """Class maps whose mask at background score `SOFT_BETA` is the scores' argmax: s_c / (s_c + s_background).

    Args:
        scores: float32 [1, C, h, w] >= 0, background first.

    Returns:
        float32 [C - 1, h, w] in 0..1; 0 where neither class nor background has a score.
    """
    background, foreground = scores[0, :1], scores[0, 1:]
    return (foreground / (foreground + background).clamp(min=1e-12)).numpy()


def _mask_of(values: NDArray[np.uint8], scores: Tensor, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """The mask uint8 [H, W] of the best class of every pixel; background wins a tie, then the lower class."""
    return enlarge(values[scores[0].argmax(dim=0).numpy()], size[0], size[1])
