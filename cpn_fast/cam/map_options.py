"""How a run's maps are made: what is asked for, and what follows from the run; free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from cpn_fast.config.refine import (
    OF_PIXEL_HEAD,
    PAPER_PRESETS,
    POWERS,
    Refine,
    RefineAt,
    RefineOptions,
    ScalesOf,
    has_refinement_heads,
    usual_refinement,
)
from cpn_fast.config.scales import CAM_SCALES, TRAINING_SCALES
from cpn_fast.files.errors import DataError
from cpn_fast.inference.options import check_scales
from cpn_fast.runs.folder import RunFolder

MOST_PAIRS = 16


@dataclass(frozen=True)
class MapOptions:
    """How a run's maps are made; what is None follows from the run.

    Attributes:
        scales: scale factors; None = `TRAINING_SCALES`, or of the image and for the presets of the paper its four.
        scales_of: what they are factors of: the "image", or the mean long side of the run's "training"; None =
            "image" where scales are given and for the presets of the paper, else "training".
        flip: also run the mirrored image.
        refine: see `RefineOptions`; None = "pixels-raw" for a run that learned pixel labels, for the presets of the
            paper the heads that they trained, else "raw".
        refine_at: see `RefineOptions`; None = "fused", or for the presets of the paper "scale".
        affinity_power: exponent of the affinities; None = 2 for "pixels-raw", else 1.
        pairs: complementary pairs at every scale, see `Labeller`.
    """

    scales: Sequence[float] | None = None
    scales_of: ScalesOf | None = None
    flip: bool = True
    refine: Refine | None = None
    refine_at: RefineAt | None = None
    affinity_power: float | None = None
    pairs: int = 0

    @classmethod
    def of(cls, config: object) -> MapOptions:
        """Those that a command's config holds under the same names."""
        return cls(**{option.name: getattr(config, option.name) for option in fields(cls)})

    def resolved(self, run: RunFolder) -> ResolvedMaps:
        """The options with what follows from a CAM network's run. Raises DataError for one that does not fit it."""
        config = run.config
        of_paper = config.preset in PAPER_PRESETS
        refine = self.refine or usual_refinement(config)
        if refine in OF_PIXEL_HEAD and not config.learns_pixels:
            raise DataError(
                f"--refine {refine}: {run.path} learned no pixel labels (of --pixel-masks or --options.teacher); "
                "use --refine raw"
            )
        if refine == "learnt" and not has_refinement_heads(config):
            raise DataError(
                f"--refine learnt: {run.path} (method {config.method}) has no refinement heads; use --refine raw"
            )
        power = POWERS.get(refine, 1.0) if self.affinity_power is None else self.affinity_power
        if not power > 0:
            raise DataError(f"--affinity-power {self.affinity_power}: expected a number above 0")
        if not 0 <= self.pairs <= MOST_PAIRS:
            raise DataError(f"--pairs {self.pairs}: expected 0 to {MOST_PAIRS}")
        if self.pairs and refine in OF_PIXEL_HEAD:
            raise DataError(
                f"--pairs {self.pairs} is for class activation maps, found --refine {refine}, the maps of {run.path}'s "
                "pixel head; leave it out, or use --refine raw"
            )
        options = RefineOptions(refine, self.refine_at or ("scale" if of_paper else "fused"), power)
        scales_of = self.scales_of or ("image" if of_paper or self.scales is not None else "training")
        default, side = (CAM_SCALES, None) if scales_of == "image" else (TRAINING_SCALES, training_side(run))
        scales = default if self.scales is None else self.scales
        check_scales(scales)
        return ResolvedMaps(tuple(scales), side, self.flip, options, self.pairs)


@dataclass(frozen=True)
class ResolvedMaps:
    """How a run's maps are made, settled.

    Attributes:
        scales: scale factors of the image, or of `side`.
        side: long side in pixels that scale 1 brings an image to; None = the image's own.
        flip: also run the mirrored image.
        refine: how RCAM is made.
        pairs: complementary pairs at every scale.
    """

    scales: tuple[float, ...]
    side: int | None
    flip: bool
    refine: RefineOptions
    pairs: int = 0

    def settings(self) -> dict[str, Any]:
        """As JSON values, for records of what made a file."""
        return {
            "scales": list(self.scales),
            "scale_side": self.side,
            "flip": self.flip,
            "refine": self.refine.refine,
            "refine_at": self.refine.at,
            "affinity_power": self.refine.power,
            **({"pairs": self.pairs} if self.pairs else {}),
        }

    def __str__(self) -> str:
        factors = " ".join(f"{scale:g}" for scale in self.scales)
        of = "" if self.side is None else f" of the training size, {self.side} pixels"
        where = {"fused": "their sum", "scale": "each"}[self.refine.at]
        how = {
            "none": "no refinement",
            "raw": f"raw refinement of {where}",
            "learnt": f"learnt refinement of {where}",
            "pixels": "maps of the pixel head",
            "pixels-raw": "maps of the pixel head, spread by raw features",
        }[self.refine.refine]
        pairs = f", {self.pairs} complementary pairs" if self.pairs else ""
        return f"scales {factors}{of}, flip {self.flip}{pairs}, {how}"


def training_side(run: RunFolder) -> int:
    """The mean long side in pixels of the images that a run was trained on."""
    return round(sum(run.config.augment.resize_range()) / 2)
