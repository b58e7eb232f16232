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
        "options.cpcr_target": "released",
        "options.ohem_pool": "all",
        "options.refined_pair_gradient": True,
        "options.prcm": "released",
        "options.tcp_target": "pair",
        "options.warm_up": 0.0,
        "options.affinity": "cosine",
        "refine_lr_factor": 10.0,
        "options.min_pool_weight": 1.0,
        "options.loss_resolution": "input",
        "patch.segments": 300,
        "momentum": 5e-4,
    },
}
"""Method presets as data: dotted field of TrainConfig -> value."""


def preset_defaults(preset: str) -> dict[str, Any]:
    """Dotted fields that a preset sets. Raises ValueError for an unknown preset."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    return dict(PRESETS[preset])
