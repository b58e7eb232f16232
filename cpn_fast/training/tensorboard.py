"""TensorBoard, and the statistics of CAM and RCAM that show whether a run is healthy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

AREA_THRESHOLD = 0.5
_STATISTICS = ("min", "mean", "area")


class MapStatistics:
    """Minimum, mean and area above 0.5 of the normalised maps per class, over the images that show the class.

    A constant CAM satisfies the triplet loss, so these are what to watch (a CAM that covers everything, or nothing).
    Sums are kept on the device and nothing waits for it.

    Args:
        num_classes: K foreground classes.
        device: where the maps are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes, self.device = num_classes, device
        self._sums: dict[str, Tensor] = {}

    def update(self, name: str, maps: Tensor, labels: Tensor) -> None:
        """Count one batch: `maps` float [B, K, h, w] in 0..1, `labels` float [B, K]."""
        maps = maps.detach().float()
        low = torch.where(labels > 0, maps.amin(dim=(2, 3)), torch.inf).amin(dim=0)
        area = (maps > AREA_THRESHOLD).float().mean(dim=(2, 3))
        added = torch.stack([low, (labels * maps.mean(dim=(2, 3))).sum(0), (labels * area).sum(0), labels.sum(0)])
        if name in self._sums:
            added[0] = torch.minimum(added[0], self._sums[name][0])
            added[1:] += self._sums[name][1:]
        self._sums[name] = added

    def take(self) -> dict[str, Tensor]:
        """The sums so far, float [4, K] per name (for `map_record`), and start anew."""
        sums, self._sums = self._sums, {}
        return sums


def map_record(sums: Tensor) -> dict[str, list[float | None]]:
    """Lists over the K classes of `min`, `mean`, `area` from the sums [4, K]; None for a class that was not seen."""
    low, mean, area, count = sums.double().numpy()
    values = (low, mean / np.maximum(count, 1), area / np.maximum(count, 1))
    return {
        name: [float(v) if n > 0 else None for v, n in zip(row, count, strict=True)]
        for name, row in zip(_STATISTICS, values, strict=True)
    }


class TensorBoardLogger:
    """TensorBoard event files of a run.

    Args:
        path: folder of the event files.
        classes: the K class names.
        start_step: steps of a killed run after this one are hidden.
    """

    def __init__(self, path: Path, classes: Sequence[str], start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.classes = tuple(classes)
        self._writer = SummaryWriter(str(path), purge_step=start_step + 1)

    def step(self, record: Mapping[str, Any]) -> None:
        """Losses, learning rate and speed of a step record."""
        groups = {"lr": "train", "images_per_second": "train", "grad_norm": "train", "peak_memory_mib": "train"}
        skipped = ("kind", "step", "epoch", "seconds")
        for name, value in record.items():
            if name not in skipped:
                self._writer.add_scalar(f"{groups.get(name, 'loss')}/{name}", value, record["step"])

    def maps(self, record: Mapping[str, Any]) -> None:
        """CAM and RCAM statistics per class from a "maps" record."""
        for kind in ("cam", "rcam"):
            for name, values in record.get(kind, {}).items():
                for label, value in zip(self.classes, values, strict=True):
                    if value is not None:
                        self._writer.add_scalar(f"{kind}_{name}/{label}", value, record["step"])

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """The validation figures of an "eval" record."""
        for name, value in record.items():
            if name not in ("kind", "step", "epoch") and value is not None:
                self._writer.add_scalar(f"val/{name}", value, record["step"])

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Images uint8 [H, W, 3] by name."""
        for name, picture in pictures.items():
            self._writer.add_image(f"pictures/{name}", picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Put everything on the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
