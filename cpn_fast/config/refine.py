"""How labelling refines CAMs; here, so that command lines know it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpn_fast.config.training import TrainConfig

Refine = Literal["raw", "learnt", "pixels", "pixels-raw", "none"]
RefineAt = Literal["fused", "scale"]
ScalesOf = Literal["training", "image"]


@dataclass(frozen=True)
class RefineOptions:
    """How labelling turns CAM into RCAM.

    Attributes:
        refine: "raw" compares pixels by the backbone's `mid` and `high` features as they are, so that it works for
            every network; "learnt" uses the refinement heads that training made; "pixels" takes the maps of the head
            that learned pixel labels instead, and "pixels-raw" spreads these as "raw" spreads CAMs; "none" leaves the
            CAM.
        at: "fused" refines the sum of all scales' CAMs once, with the features of one scale; "scale" refines the CAM of
            each scale (and of each mirrored image) by itself and sums what comes out, as the paper does. The pixel
            head's maps have no such choice.
        power: exponent of the affinities, above 0; 1 is the paper's.
    """

    refine: Refine = "learnt"
    at: RefineAt = "scale"
    power: float = 1.0


PER_SCALE = RefineOptions("learnt", "scale")
"""The paper's refinement: that of the trained heads, at every scale."""

OF_PIXEL_HEAD = ("pixels", "pixels-raw")
"""Values of `refine` that need a network with a pixel head."""

OF_RAW_FEATURES = ("raw", "pixels-raw")
"""Values of `refine` that compare pixels by the backbone's features."""

POWERS = {"pixels-raw": 2.0}
"""Exponents of the affinities that did best, where that is not 1."""

PIXELS = RefineOptions("pixels-raw", "fused", POWERS["pixels-raw"])
"""The maps of a head that learned pixel labels, as a run's own labelling makes them."""


PAPER_PRESETS = ("paper", "released")
"""Presets that label as the paper does: its four scales of the image, each refined by the trained heads."""


def usual_refinement(config: TrainConfig) -> Refine:
    """How a run's labelling refines where nobody says: after pixel labels by their head, else by raw features.

    The presets of the paper take the heads that they trained, if any.
    """
    if config.learns_pixels:
        return PIXELS.refine
    if config.preset in PAPER_PRESETS:
        return "learnt" if has_refinement_heads(config) else "none"
    return "raw"


def has_refinement_heads(config: TrainConfig) -> bool:
    """Whether a run's network has heads of its own for "learnt" refinement."""
    return config.method != "cam" and config.options.pcm
