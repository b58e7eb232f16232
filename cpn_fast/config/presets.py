"""Presets: bundles of settings of a CAM training that stand for a whole description of the method."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "options.map_norm": "max",
        "options.cpcr_target": "dense",
        "options.ohem_pool": "all",
        "options.affinity": "cosine",
        "options.tcp_target": "pair",
        "options.prcm": "softmax",
        "options.warm_up": 0.0,
        "refine_lr_factor": 10.0,
        "momentum": 0.9,
        "patch.segments": 200,
    },
    "released": {
        "options.map_norm": "minmax",
        "options.tcp_target": "pair",
        "options.refined_pair_gradient": True,
        "options.cpcr_target": "released",
        "options.ohem_pool": "all",
        "options.min_pool_weight": 1.0,
        "options.loss_resolution": "input",
        "options.score_resolution": "input",
        "options.winner_classes": "all",
        "options.affinity": "cosine",
        "options.prcm": "released",
        "options.seam_scale": 0.3,
        "options.seam_background": "refined",
        "options.scale_resize": "bicubic",
        "options.p_hidden": 0.39,
        "options.warm_up": 0.0,
        "patch.segments": 225,  # they ask scikit-image for 300, which makes 209 to 242 of it; ours makes what is asked
        "lr": 0.01,
        "momentum": 5e-4,  # their optimiser has the weight decay in momentum's place
        "head_lr_factor": 10.0,
        "refine_lr_factor": 10.0,
    },
}
"""Method presets as data: dotted field of TrainConfig -> value."""


def preset_defaults(preset: str) -> dict[str, Any]:
    """Dotted fields that a preset sets. Raises ValueError for an unknown preset."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    return dict(PRESETS[preset])
