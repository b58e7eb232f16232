"""Options of `cpn report`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.config.scales import CAM_SCALES


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about a run: pictures, curves, classes, settings. It needs no network to be read.

    Attributes:
        run: run folder.
        output: the page; None = RUN/report.html.
        data: source of the pictures; None = the run's.
        split: split of the pictures; None = `val` where it exists, else the run's.
        images: how many images are shown.
        masks: folder of masks written before (its SegmentationClass is found); None = the network's own.
        scales: scale factors of the pictures' inference.
        flip: also run the mirrored image.
        max_side: longer images are reduced to this long side in pixels first.
        device: where the network runs; auto = a GPU where there is one.
    """

    run: Annotated[Path, tyro.conf.Positional]
    output: Path | None = None
    data: str | None = None
    split: str | None = None
    images: int = 8
    masks: Path | None = None
    scales: tuple[float, ...] = CAM_SCALES
    flip: bool = True
    max_side: int = 1024
    device: Literal["auto", "cpu", "cuda"] = "auto"
