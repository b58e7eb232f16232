"""Refinement of one labelled image: from its files through steps (random walk, dense CRF) to a mask and an entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpn_fast.data.types import VOID
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import mask_path, soft_path
from cpn_fast.files.masks import read_mask, write_mask
from cpn_fast.files.max_side import enlarge
from cpn_fast.files.output_folder import explained_writes
from cpn_fast.files.soft_maps import SoftMaps, write_soft_maps
from cpn_fast.refine.crf import Background, background_scores
from cpn_fast.refine.labelled_folder import LabelledFolder, check_size, file_digest
from cpn_kernels.ops.dense_crf import probabilities_from_labels

SOFT_BETA = 0.5
"""Background score at which refined soft maps give the refined mask."""


class Step(Protocol):
    """One refinement of an image's scores."""

    def settings(self) -> dict[str, Any]:
        """What decides its result beside its input, JSON-able."""

    def __call__(self, image_id: str, image: NDArray[np.uint8], scores: Tensor) -> Tensor:
        """Scores float32 [1, C, h, w] >= 0, background first, to the same, of this or of image size."""


@dataclass(frozen=True)
class Beginning:
    """What the steps begin with.

    Attributes:
        background: stands against the soft maps; None = begin with the hard masks.
        gt_prob: how sure hard masks are taken to be.
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


@dataclass(frozen=True)
class Refiner:
    """How one image's files become a refined mask. Called in threads.

    Attributes:
        folder: the labelling.
        output: folder of the refined masks.
        beginning: what the steps begin with.
        steps: one after the other.
        soft_maps: also write the refined scores as class maps (see `refined_maps`).
    """

    folder: LabelledFolder
    output: Path
    beginning: Beginning
    steps: tuple[Step, ...]
    soft_maps: bool = False

    def source_path(self, image_id: str) -> Path:
        """The file that the refinement of an image begins with."""
        return (mask_path if self.beginning.background is None else soft_path)(self.folder.path, image_id)

    def digest(self, image_id: str) -> str | None:
        """SHA-256 of that file; None where it cannot be read."""
        return file_digest(self.source_path(image_id))

    def settings(self) -> dict[str, Any]:
        """What decides the mask beside its input, JSON-able."""
        merged = self.beginning.settings()
        for step in self.steps:
            merged |= step.settings()
        return merged

    def is_done(self, entry: Mapping[str, Any] | None) -> bool:
        """Whether the files that a manifest entry of the output speaks of are there and their input is unchanged."""
        if entry is None or entry.get("status") != "ok" or not mask_path(self.output, entry["id"]).is_file():
            return False
        if self.soft_maps and not soft_path(self.output, entry["id"]).is_file():
            return False
        return self.digest(entry["id"]) in (None, entry.get("input_sha256"))

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Refine one image and write its mask.

        Args:
            entry: its line of the labelling's manifest.

        Returns:
            the manifest entry; status "error" where image or maps cannot be read or do not fit each other.

        Raises:
            DataError: where the mask cannot be written, or a step's numbers do not fit the image.
        """
        image_id, path = entry["id"], self.folder.image_path(entry)
        try:
            digest = self.digest(image_id)
            image = self.folder.read_image(entry)
            before = self._read(image_id)
            check_size(self.source_path(image_id), before.mask.shape, path, image)
        except DataError as error:
            return {"id": image_id, "status": "error", "image": str(path), "error": str(error)}
        mask = self._refine(image_id, image, before)
        return {
            "id": image_id,
            "status": "ok",
            "image": str(path),
            "mask": mask_path(Path(), image_id).as_posix(),
            "width": mask.shape[1],
            "height": mask.shape[0],
            "labels": entry.get("labels"),
            "labels_from": entry.get("labels_from"),
            "foreground": round(float(np.mean((mask > 0) & (mask < VOID))), 4),
            "changed": round(float(np.mean(mask != before.mask)), 4),
            "input_sha256": digest,
            "settings": self.settings(),
        }

    def _refine(self, image_id: str, image: NDArray[np.uint8], before: Scores) -> NDArray[np.uint8]:
        """Write and return the mask of an image."""
        scores, decided = before.scores, len(before.values) == 1  # background alone: nothing that a step could decide
        if not decided:
            for step in self.steps:
                scores = step(image_id, image, scores)
        mask = before.mask if decided else _mask_of(before.values, scores, before.mask.shape)
        with explained_writes(self.output, f"the mask of {image_id}"):
            if self.soft_maps:
                soft = SoftMaps(before.values[1:], refined_maps(scores), (mask.shape[0], mask.shape[1]))
                write_soft_maps(soft_path(self.output, image_id), soft)
            write_mask(mask_path(self.output, image_id), mask)
        return mask

    def _read(self, image_id: str) -> Scores:
        if self.beginning.background is not None:
            soft = self.folder.read_maps(image_id, ", or take the hard masks with --hard")
            values = np.concatenate([[0], soft.classes]).astype(np.uint8)
            scores = background_scores(soft.maps, self.beginning.background)
            return Scores(values, scores, _mask_of(values, scores, soft.size))
        mask = read_mask(self.source_path(image_id), len(self.folder.classes))
        values = np.union1d([0], mask[mask != VOID]).astype(np.uint8)
        channel = np.full(256, VOID, dtype=np.uint8)
        channel[values] = np.arange(len(values))
        labels = torch.from_numpy(channel[mask])[None]
        return Scores(values, probabilities_from_labels(labels, len(values), self.beginning.gt_prob), mask)


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
