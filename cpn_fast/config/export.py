"""Options of `cpn export`, which the pipeline holds too; what exports lies above this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.config.refine import Refine, RefineAt, ScalesOf


@dataclass(frozen=True)
class ExportConfig:
    """Write a run as an ONNX model for `cpn-label`.

    Attributes:
        run: run folder, of `cpn train` or `cpn segment train`.
        output: the `.onnx` file.
        scales: scale factors of the image, in steps of 0.01; None = as `cpn label`, and for a segmentation network
            0.5 0.75 1 1.25 1.5 1.75.
        scales_of: of a CAM network, whether scales are factors of the "image", or of the mean long side of the run's
            "training"; None = of the image where they are given.
        flip: also run the mirrored image.
        refine: of a CAM network, how RCAM is made of CAM, "raw", "learnt", "pixels-raw" or another, as for `cpn label`.
        refine_at: of a CAM network, refine the "fused" CAM of all scales, or that of each "scale", as for `cpn label`.
        affinity_power: of a CAM network, exponent of the affinities of refinement; None = 2 for "pixels-raw", else 1.
        pairs: of a CAM network, complementary pairs at every scale, as for `cpn label`; None = 0.
        beta: of a CAM network, background score of the masks, in [0, 1]; None = the best one that `cpn evaluate` found
            for the run.
        threshold: of a CAM network, class probability above which a class stands in where an image has no labels;
            None = 0.5.
        max_side: longer images are to be reduced to this long side in pixels first (by `cpn-label`, not in the graph).
        precision: number format of the network: float32, float16 (half the file; meant for a GPU) or int8 (a quarter of
            the file; meant for a CPU).
        calibrate: folder of images like those to be labelled, from which int8 takes its ranges.
        calibrate_images: so many of them, spread evenly.
        licence: under which terms the weights may be used, e.g. "CC-BY-4.0", for the model card that the file holds.
        reduce_range: int8 with weights of 7 bits, for x86 CPUs without VNNI, on which 8 bits may overflow.
    """

    run: Annotated[Path, tyro.conf.Positional]
    output: Path
    scales: tuple[float, ...] | None = None
    scales_of: ScalesOf | None = None
    flip: bool = True
    refine: Refine | None = None
    refine_at: RefineAt | None = None
    affinity_power: float | None = None
    pairs: int | None = None
    beta: float | None = None
    threshold: float | None = None
    max_side: int = 1024
    precision: Annotated[Literal["float32", "float16", "int8"], tyro.conf.arg(aliases=("--variant",))] = "float32"
    calibrate: Path | None = None
    calibrate_images: int = 32
    licence: str = ""
    reduce_range: bool = False
