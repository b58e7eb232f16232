"""Options of `cpn train-affinity`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tyro

from cpn_fast.config.training import AffinityConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.options import parse_training, value_of

DESCRIPTION = (
    "Train AffinityNet on what a labelling is sure of. Labels are made first, in OUTPUT/labels; a command that was "
    "stopped there resumes when it is rerun. --resume takes the run's own settings."
)

LABELS = "labels"
"""Folder in a run that holds what it learns from."""


def parse(argv: Sequence[str], recipe: Callable[[AffinityConfig], AffinityConfig] | None = None) -> AffinityConfig:
    """Settings from the command line: the recipe's, then those given; on --resume the run's own, then those given.

    Args:
        argv: arguments without the program's name.
        recipe: fills in what the caller would have otherwise than the defaults.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run, or one of another kind, or one that was stopped before its training.
    """
    run = RunFolder(value_of(argv, "--output") or ".")
    if "--resume" in argv and not run.exists() and (run.path / LABELS).is_dir():
        raise DataError(f"{run.path}: stopped while its labels were made; rerun that command, without --resume")
    blank = AffinityConfig(masks=tyro.MISSING, output=tyro.MISSING)
    return parse_training(argv, blank, recipe, "cpn train-affinity", DESCRIPTION)
