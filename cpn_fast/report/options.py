"""Options of `cpn report`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.config.refine import Refine, RefineAt, ScalesOf


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
        scales: scale factors of the pictures' inference; None = as `cpn label`.
        scales_of: whether scales are factors of the "image", or of the mean long side of the run's "training"; None =
            of the image where they are given.
        flip: also run the mirrored image.
        refine: how the pictures' RCAM is made, "raw", "learnt", "pixels-raw" or another, as for `cpn label`.
        refine_at: refine the "fused" CAM of all scales, or that of each "scale", as for `cpn label`.
        affinity_power: exponent of the affinities of refinement; None = 2 for "pixels-raw", else 1.
        pairs: complementary pairs at every scale, as for `cpn label`.
        max_side: longer images are reduced to this long side in pixels first.
        device: where the network runs; auto = a GPU where there is one.
    """

    run: Annotated[Path, tyro.conf.Positional]
    output: Path | None = None
    data: str | None = None
    split: str | None = None
    images: int = 8
    masks: Path | None = None
    scales: tuple[float, ...] | None = None
    scales_of: ScalesOf | None = None
    flip: bool = True
    refine: Refine | None = None
    refine_at: RefineAt | None = None
    affinity_power: float | None = None
    pairs: int = 0
    max_side: int = 1024
    device: Literal["auto", "cpu", "cuda"] = "auto"
