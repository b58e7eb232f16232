"""The background score of a run: what `cpn evaluate` found by masks, else by its kind of maps, or found without."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpn_fast.config.refine import OF_PIXEL_HEAD, Refine, usual_refinement
from cpn_fast.config.training import TrainConfig
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.background_score import (
    DEFAULT_BETA,
    EVEN_BETA,
    REFINED_BETA,
    background_score,
    check_score,
)
from cpn_fast.files.json_file import read_json

log = logging.getLogger(__name__)

SCORES_NAME = "metrics.json"
"""In a run's folder: what `cpn evaluate` found."""

FOUND_NAME = "background_score.json"
"""In a run's folder: the score that labelling found without masks, and on what."""

BY_MAPS: Mapping[Refine, float] = {
    "none": DEFAULT_BETA,
    "raw": REFINED_BETA,
    "learnt": REFINED_BETA,
    "pixels": EVEN_BETA,
    "pixels-raw": EVEN_BETA,
}
"""Of runs that were never scored."""


def score_of(run: Path, config: TrainConfig | None, given: float | None, refine: Refine | None) -> float:
    """The score that decides against a run's foreground maps.

    Args:
        run: its folder.
        config: its settings; None = not of a CAM network, or not there.
        given: by `--beta`; None = not given.
        refine: how the maps are refined; None = as the run's own labelling does.

    Raises:
        DataError: for one that is not in 0..1, or a damaged file.
    """
    if given is not None:
        return check_score(given, "--beta")
    if config is not None:
        refine = refine or usual_refinement(config)
    scored = scored_beta(run, refine)
    if scored is not None:
        return scored
    return DEFAULT_BETA if refine is None else _unscored_beta(run, refine)


def scored_beta(run: Path, refine: Refine | None) -> float | None:
    """The best one that `cpn evaluate` found; None where it did not run, found no class, or scored other maps.

    Args:
        run: the run's folder.
        refine: how the maps are refined; None = whatever it scored.

    Raises:
        DataError: for a damaged `SCORES_NAME`.
    """
    path = run / SCORES_NAME
    if not path.is_file():
        return None
    scores = read_json(path, "what `cpn evaluate` wrote", "run it again")
    found, of = (scores.get("beta", ""), scores.get("refine")) if isinstance(scores, dict) else (scores, None)
    beta = None if found is None else background_score(None, found, f"{path}: key beta")
    if beta is None or refine is None or of is None or of == refine:
        return beta
    log.info("%s: its background score %g is of maps with --refine %s, not of --refine %s", path, beta, of, refine)
    return None


def _unscored_beta(run: Path, refine: Refine) -> float:
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
