"""The background score beta: where it comes from and which values it may have, one rule for all commands."""

from __future__ import annotations

from typing import Any

from cpn_fast.files.errors import DataError
from cpn_fast.files.names import quoted

DEFAULT_BETA = 0.25
"""Of class activation maps as they are, of a run that was never scored against masks."""

REFINED_BETA = 0.45
"""Of refined maps of such a run: the best of six CAM networks after PCM is 0.42 to 0.46 (docs/results/study.md)."""

EVEN_BETA = 0.5
"""Of a pixel head's maps of such a run: the mask is then the most probable of background and the image's classes."""


def check_score(value: Any, where: str) -> float:
    """A score as a number in 0..1.

    Args:
        value: what was given or found; JSON's true and false are no numbers.
        where: the option, or the file and key, for the error.

    Raises:
        DataError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        found = f" {value}:" if where.startswith("--") else f": found {quoted(value)},"
        raise DataError(f"{where}{found} expected a number in 0..1")
    return float(value)


def background_score(given: float | None, found: Any, where: str) -> float:
    """The score that decides against the foreground maps: the one that was given, else the one that a file holds.

    Args:
        given: by `--beta`; None = not given.
        found: what the file holds; None = nothing.
        where: that file and key, for the error.

    Raises:
        DataError: where neither is there, or it is no number in 0..1.
    """
    if given is not None:
        return check_score(given, "--beta")
    try:
        return check_score(found, where)
    except DataError as error:
        raise DataError(f"{error}; give --beta") from None
