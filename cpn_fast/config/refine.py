"""How labelling refines CAMs; here, so that command lines know it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpn_fast.config.training import TrainConfig

Refine = Literal["raw", "learnt", "pixels", "none"]
RefineAt = Literal["fused", "scale"]
ScalesOf = Literal["training", "image"]


@dataclass(frozen=True)
class RefineOptions:
    """How labelling turns CAM into RCAM.

    Attributes:
        refine: "raw" compares pixels by the backbone's `mid` and `high` features as they are, so that it works for
            every network; "learnt" uses the refinement heads that training made; "pixels" takes the maps of the head
            that learned pixel labels instead; "none" leaves the CAM.
        at: "fused" refines the sum of all scales' CAMs once, with the features of one scale; "scale" refines the CAM of
            each scale (and of each mirrored image) by itself and sums what comes out, as the paper does. "pixels" has
            no such choice.
        power: exponent of the affinities, above 0; 1 is the paper's.
    """

    refine: Refine = "learnt"
    at: RefineAt = "scale"
    power: float = 1.0


PER_SCALE = RefineOptions("learnt", "scale")
"""The paper's refinement: that of the trained heads, at every scale."""

PIXELS = RefineOptions("pixels", "fused")
"""The maps of the head that learned pixel labels."""


def has_refinement_heads(config: TrainConfig) -> bool:
    """Whether a run's network has heads of its own for "learnt" refinement."""
    return config.method != "cam" and config.options.pcm
