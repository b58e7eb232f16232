"""Options of `cpn refine`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.cluster.options import EngineOptions
from cpn_fast.refine.crf_options import CrfOptions, CrfPreset

BackgroundRule = Literal["constant", "power"]

WALK_STEPS, WALK_POWER = 16, 16
"""Of the walk, unless others are given; chosen on photographs (coco_mini). The paper's 64 steps at power 8 need an
AffinityNet that has trained for 10,000 steps: after some hundred they took generated images' masks from 61.4% mIoU to
36.7, these to 80.7, both with a dense CRF after them."""

HARD_PROBABILITY = 0.7
"""How sure hard masks are taken to be; `cpn_kernels.ops.dense_crf.GT_PROB`."""


@dataclass(frozen=True)
class RefineConfig(EngineOptions, CrfOptions):
    """Refine masks that `cpn label` wrote.

    Attributes:
        masks: folder that `cpn label --soft-maps` wrote.
        output: folder for SegmentationClass/ID.png, labelmap.txt, manifest.jsonl and settings.json.
        random_walk: run folder of `cpn train-affinity`: let the maps walk between pixels that its AffinityNet joins.
        crf: dense CRF, after the walk where there are both.
        hard: begin with the hard masks instead of the soft maps; void pixels count as unsure.
        gt_prob: label confidence: the probability that a label of a hard mask is right, between 0 and 1.
        background: what stands against the soft maps: the constant score beta, as in the labelling's masks, or the
            power (1 - max) ** alpha; None = power for the walk, constant for the CRF alone.
        beta: background score, 0..1; None = the labelling's.
        alpha: background exponent; None = the one that decides as beta does.
        steps: of the walk.
        power: to which the walk raises affinities: the higher, the fewer neighbours count.
        scale: of the images before AffinityNet; 2 makes the walk's grid twice as fine.
        soft_maps: also write the refined maps to SoftMaps/ID.npz, scaled so that background score 0.5 gives the mask.
        preset: numbers of the CRF for a segmentation network's predictions, which gave better masks too (coco_mini), or
            those for AffinityNet's labels.
        data: source in which to find the images by their ids, where they have moved since.
        overwrite: refine everything again, also with other settings.
        allow_failures: exit with status 0, not 3, also where some images could not be refined.
        workers: images at a time; None = one per thread of torch.
        device: where AffinityNet, the walk and the CRF run; auto = a GPU where there is one.
    """

    masks: Annotated[Path, tyro.conf.Positional]
    output: Path
    random_walk: Path | None = None
    crf: bool = False
    hard: bool = False
    gt_prob: float = HARD_PROBABILITY
    background: BackgroundRule | None = None
    beta: float | None = None
    alpha: float | None = None
    steps: int = WALK_STEPS
    power: int = WALK_POWER
    scale: float = 1.0
    soft_maps: bool = False
    preset: CrfPreset = "segmentation"
    data: str | None = None
    overwrite: bool = False
    allow_failures: bool = False
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
