"""Options of `cpn evaluate`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.cluster.options import EngineOptions
from cpn_fast.config.refine import Refine, RefineAt, ScalesOf


@dataclass(frozen=True)
class EvaluateConfig(EngineOptions):
    """Score a run's maps or a folder of masks against ground truth.

    Attributes:
        target: a run folder, or a folder of masks (ID.png, or SegmentationClass/ID.png).
        others: more of them, each scored alike; one table then compares them all.
        data: source with masks, e.g. `voc:PATH`, `coco:PATH`, `folder:PATH`, `classes:PATH`, `demo:` or a bare path.
        split: split to score; None = train where the source has it, else all its images.
        output: folder for metrics.json and the plot; None = each target's own.
        scales: each is scored alone, and all together; None = 1, 1.5 and 2
            times the mean long side of the run's training (presets paper, released: 0.5 1 1.5 2 of the image).
        scales_of: whether scales are factors of the "image", or of the mean long side of the run's "training"; None =
            of the image where they are given.
        flip: also run the mirrored image.
        refine: how RCAM is made of CAM: "raw" spreads it over pixels that look alike by the backbone's own features,
            "learnt" by the refinement heads that the run trained, "none" leaves it; "pixels" takes the maps of the head
            that learned pixel labels instead, "pixels-raw" spreads them; None = raw (presets paper, released: learnt;
            after pixel labels: pixels-raw).
        refine_at: refine the "fused" CAM of all scales once, or that of each "scale"; None = fused (presets paper,
            released: scale).
        affinity_power: exponent of the affinities of refinement; None = 2 for "pixels-raw", else 1.
        pairs: also run so many complementary pairs of the image at every scale, and add what their views show: more of
            the object, at two passes more for each.
        max_side: longer images are reduced to this long side in pixels first, and the result enlarged back.
        threshold: class probability above which a class counts as present without image labels (the best always does).
        use_labels: False ignores image labels.
        images: score at most so many images, spread evenly over the split's (those with masks); None = all.
        allow_missing: score a folder of masks also where images with ground truth have no mask in it.
        batch_size: images of equal size that go through the network together.
        workers: threads that read images.
        device: where the network runs; auto = a GPU where there is one.
    """

    target: Annotated[Path, tyro.conf.Positional]
    data: str
    others: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    split: str | None = None
    output: Path | None = None
    scales: tuple[float, ...] | None = None
    scales_of: ScalesOf | None = None
    flip: bool = True
    refine: Refine | None = None
    refine_at: RefineAt | None = None
    affinity_power: float | None = None
    pairs: int = 0
    max_side: int = 1024
    threshold: float = 0.5
    use_labels: bool = True
    images: int | None = None
    allow_missing: bool = False
    batch_size: int = 1
    workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
