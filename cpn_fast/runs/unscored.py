"""The background score of a run that was never scored against masks: by its kind of maps, or found without masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpn_fast.config.refine import OF_PIXEL_HEAD, Refine, usual_refinement
from cpn_fast.config.training import TrainConfig
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.background_score import DEFAULT_BETA, EVEN_BETA, REFINED_BETA, background_score
from cpn_fast.files.json_file import read_json

FOUND_NAME = "background_score.json"
"""In a run's folder: the score that labelling found without masks, and on what."""

BY_MAPS: Mapping[Refine, float] = {
    "none": DEFAULT_BETA,
    "raw": REFINED_BETA,
    "learnt": REFINED_BETA,
    "pixels": EVEN_BETA,
    "pixels-raw": EVEN_BETA,
}


def unscored_beta(run: Path, config: TrainConfig, refine: Refine | None) -> float:
    """The score of an unscored run of a CAM network.

    Args:
        run: its folder.
        config: its settings.
        refine: how the maps are refined; None = as the run's own labelling does.

    Raises:
        DataError: for a damaged `FOUND_NAME`.
    """
    refine = refine or usual_refinement(config)
    found = read_found(run) if refine in OF_PIXEL_HEAD else None
    if found is None or found.get("refine") != refine:
        return BY_MAPS[refine]
    return background_score(None, found.get("beta"), f"{run / FOUND_NAME}: key beta")


def read_found(run: Path) -> dict[str, Any] | None:
    """What `write_found` wrote; None where it did not, or where it is nothing of the kind."""
    path = run / FOUND_NAME
    if not path.is_file():
        return None
    found = read_json(path, "what `cpn label` wrote", "delete it: labelling finds it again")
    return found if isinstance(found, dict) else None


def write_found(run: Path, beta: float, about: Mapping[str, Any]) -> None:
    """Keep a score that was found without masks.

    Args:
        run: the run's folder.
        beta: the score.
        about: on what it was found: `refine` (how maps are refined) and whatever else it depends on.
    """
    atomic_write_text(run / FOUND_NAME, json.dumps({"beta": beta, **about}, indent=2, ensure_ascii=False) + "\n")
