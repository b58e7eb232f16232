"""Dense CRF on the masks or class maps of one image: from files to a file, and what the manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpn_fast.data.types import VOID
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image
from cpn_fast.files.masks import read_mask, write_mask
from cpn_fast.files.soft_maps import read_soft_maps
from cpn_fast.mask_writer import mask_path, soft_path
from cpn_fast.models.affinity_labels import with_background_power
from cpn_fast.output_folder import explained_writes
from cpn_kernels.dense_crf import Settings, dense_crf, probabilities_from_labels

BackgroundRule = Literal["constant", "power"]


@dataclass(frozen=True)
class Background:
    """What stands against the class maps.

    Attributes:
        rule: "constant": the score `value` everywhere, as in the mask's argmax; "power": (1 - max) ** `value`, which
            grows where no class is seen.
        value: the score beta or the power alpha.
    """

    rule: BackgroundRule
    value: float


def map_probabilities(maps: NDArray[np.float32], background: Background) -> Tensor:
    """Class maps and background as probabilities, scaled to sum to 1 over the present classes and background.

    Mean field sees log-probabilities only up to a constant per pixel, so the scaling decides nothing but what falls
    under the operator's clip. Their argmax is the mask before the CRF: with `constant` that of the labelling at the
    same beta, with `power` too where alpha is log(beta) / log(1 - beta).

    Args:
        maps: float32 [P, H, W] in 0..1, P >= 1.
        background: its rule and number.

    Returns:
        float32 [1, P + 1, H, W], background first.
    """
    foreground = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None]
    if background.rule == "power":
        scores = with_background_power(foreground, background.value)
    else:
        constant = torch.full_like(foreground[:, :1], background.value)
        scores = torch.cat([constant, foreground], dim=1)
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class Unary:
    """What an image's files say before the CRF.

    Attributes:
        values: uint8 [C], mask value of each channel: 0, then the present classes.
        probabilities: float32 [1, C, H, W]; None where there is nothing to decide (no class).
        mask: uint8 [H, W], the mask before the CRF.
    """

    values: NDArray[np.uint8]
    probabilities: Tensor | None
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class CrfRefiner:
    """How one image's maps become a refined mask. Called in threads.

    Attributes:
        masks: folder that `cpn label` wrote.
        output: folder of the refined masks.
        num_classes: K foreground classes.
        background: for class maps; None = take hard masks.
        gt_prob: how sure hard masks are taken to be.
        crf: numbers of the CRF.
        images: image path by id, where they are known better than the manifest says.
    """

    masks: Path
    output: Path
    num_classes: int
    background: Background | None
    gt_prob: float
    crf: Settings
    images: Mapping[str, Path]

    def source_path(self, image_id: str) -> Path:
        """The file that the refinement of an image begins with."""
        return (mask_path if self.background is None else soft_path)(self.masks, image_id)

    def digest(self, image_id: str) -> str | None:
        """SHA-256 of that file; None where it cannot be read."""
        try:
            return hashlib.sha256(self.source_path(image_id).read_bytes()).hexdigest()
        except OSError:
            return None

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Refine one image and write its mask.

        Args:
            entry: its line of the labelling's manifest.

        Returns:
            the manifest entry; status "error" where image or maps cannot be read or do not fit each other.

        Raises:
            DataError: where the mask cannot be written, or the CRF's numbers do not fit the image.
        """
        image_id = entry["id"]
        path = self.images.get(image_id, Path(entry["image"]))
        try:
            digest = self.digest(image_id)
            image, unary = self._read(image_id, path)
        except DataError as error:
            return {"id": image_id, "status": "error", "image": str(path), "error": str(error)}
        mask = self._refine(image_id, image, unary)
        with explained_writes(self.output, f"the mask of {image_id}"):
            write_mask(mask_path(self.output, image_id), mask)
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
            "changed": round(float(np.mean(mask != unary.mask)), 4),
            "input_sha256": digest,
            "settings": self.settings(),
        }

    def settings(self) -> dict[str, Any]:
        """What decides the mask beside its input, JSON-able."""
        if self.background is None:
            unary: dict[str, Any] = {"unary": "hard masks", "gt_prob": self.gt_prob}
        else:
            unary = {"unary": "soft maps", "background": self.background.rule, "value": self.background.value}
        return {**unary, **asdict(self.crf)}

    def _read(self, image_id: str, image_path: Path) -> tuple[NDArray[np.uint8], Unary]:
        if not image_path.is_file():
            raise DataError(
                f"{image_path}: the image of {image_id} is not there (it was when it was labelled); put it back, call "
                "from the folder where it was labelled, or give --data SOURCE, where it is found by its id"
            )
        image = read_image(image_path)
        path = self.source_path(image_id)
        unary = self._from_mask(path) if self.background is None else self._from_maps(path, self.background)
        if unary.mask.shape != image.shape[:2]:
            raise DataError(
                f"{path}: made for {unary.mask.shape[1]} x {unary.mask.shape[0]} pixels but {image_path} is "
                f"{image.shape[1]} x {image.shape[0]}; expected equal sizes: label the image again"
            )
        return image, unary

    def _from_maps(self, path: Path, background: Background) -> Unary:
        if not path.is_file():
            raise DataError(f"{path}: not there; label again with --soft-maps, or take the hard masks with --hard")
        soft = read_soft_maps(path)
        values = np.concatenate([[0], soft.classes]).astype(np.uint8)
        wrong = [int(value) for value in soft.classes if not 1 <= value <= self.num_classes]
        if wrong:
            raise DataError(
                f"{path}: maps of class {wrong[0]}; expected 1..{self.num_classes} by labelmap.txt: label it again"
            )
        if not len(soft.classes):
            return Unary(values, None, np.zeros(soft.size, dtype=np.uint8))
        probabilities = map_probabilities(soft.at_image_size(), background)
        return Unary(values, probabilities, _winners(values, probabilities))

    def _from_mask(self, path: Path) -> Unary:
        mask = read_mask(path, self.num_classes)
        values = np.union1d([0], mask[mask != VOID]).astype(np.uint8)
        if len(values) == 1:
            return Unary(values, None, mask)
        channel = np.full(256, VOID, dtype=np.uint8)
        channel[values] = np.arange(len(values))
        labels = torch.from_numpy(channel[mask])[None]
        return Unary(values, probabilities_from_labels(labels, len(values), self.gt_prob), mask)

    def _refine(self, image_id: str, image: NDArray[np.uint8], unary: Unary) -> NDArray[np.uint8]:
        if unary.probabilities is None:
            return unary.mask  # background alone: nothing that a CRF could decide
        refined = crf_probabilities(image_id, image, unary.probabilities, self.crf)
        return _winners(unary.values, refined)


def crf_probabilities(image_id: str, image: NDArray[np.uint8], probabilities: Tensor, crf: Settings) -> Tensor:
    """Dense CRF on one image.

    Args:
        image_id: for the error.
        image: uint8 [H, W, 3].
        probabilities: float32 [1, C, H, W].
        crf: its numbers.

    Returns:
        float32 [1, C, H, W].

    Raises:
        DataError: where the numbers do not fit an image of this size.
    """
    try:
        return dense_crf(torch.from_numpy(image)[None], probabilities, **asdict(crf))
    except ValueError as error:
        raise DataError(
            f"{image_id}: {error}; give larger --gaussian-sxy, --bilateral-sxy or --bilateral-srgb"
        ) from error


def _winners(values: NDArray[np.uint8], probabilities: Tensor) -> NDArray[np.uint8]:
    """The mask uint8 [H, W] of the likeliest class of every pixel; background wins a tie, then the lower class."""
    return values[probabilities[0].argmax(dim=0).numpy()]
