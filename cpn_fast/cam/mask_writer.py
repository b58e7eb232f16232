"""From a prediction to the files of one image: mask, soft maps, and what the manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.cam.inference import Prediction
from cpn_fast.data.types import VOID
from cpn_fast.files.mask_folder import mask_path, soft_path
from cpn_fast.files.masks import write_mask
from cpn_fast.files.output_folder import explained_writes
from cpn_fast.files.soft_maps import SoftMaps, write_soft_maps
from cpn_fast.metrics.beta_sweep import mask_at
from cpn_fast.metrics.maps import MULTI, MapName


@dataclass(frozen=True)
class MaskWriter:
    """How one prediction becomes files. Called in threads."""

    output: Path
    classes: tuple[str, ...]
    name: MapName
    beta: float
    void_band: tuple[float, float] | None
    soft_maps: bool

    def __call__(self, prediction: Prediction) -> dict[str, Any]:
        """Write mask and soft maps; returns the manifest entry."""
        best, score = prediction.best(self.name)
        mask = mask_at(best, score, self.beta)
        if self.void_band is not None:
            low, high = np.float32(self.void_band[0]), np.float32(self.void_band[1])
            mask[(score >= low) & (score <= high)] = VOID
        maps = prediction.maps[self.name, MULTI]
        size = prediction.image.shape[:2]
        entry_id = prediction.record.id
        with explained_writes(self.output, f"the mask of {entry_id}"):
            if self.soft_maps:
                soft = SoftMaps((prediction.classes + 1).astype(np.uint8), maps, (size[0], size[1]))
                write_soft_maps(soft_path(self.output, entry_id), soft)
            write_mask(mask_path(self.output, entry_id), mask)
        return {
            "id": entry_id,
            "status": "ok",
            "image": str(prediction.record.image_path),
            "mask": mask_path(Path(), entry_id).as_posix(),
            "width": size[1],
            "height": size[0],
            "labels": [self.classes[c] for c in prediction.classes],
            "labels_from": "scores" if prediction.given is None else "image",
            "foreground": round(float(np.mean((mask > 0) & (mask < VOID))), 4),
            "confidence": round(confidence(maps, self.beta), 4),
        }


def confidence(maps: NDArray[np.float32], beta: float) -> float:
    """How far, on average, a pixel's winner is above its rival, as a share of the most it could be.

    Args:
        maps: float32 [P, h, w] in 0..1, the maps of the classes in the image.
        beta: background score.

    Returns:
        0..1; 0 where classes are there but no pixel shows one, 1 for an image without classes.
    """
    if len(maps) == 0:
        return 1.0
    ordered = np.sort(maps, axis=0)
    best = ordered[-1]
    rival = np.maximum(ordered[-2], beta) if len(maps) > 1 else np.full_like(best, beta)
    foreground = best > np.float32(beta)
    if not foreground.any():
        return 0.0
    margin = np.where(foreground, (best - rival) / max(1 - beta, 1e-6), (beta - best) / max(beta, 1e-6))
    return float(margin.mean().clip(0, 1))
