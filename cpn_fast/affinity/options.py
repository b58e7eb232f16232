"""Options of `cpn affinity`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from cpn_fast.config.training import AffinityConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.options import long_forms, resumed_settings, value_of

SHORT = {"--crop": "--augment.crop"}
"""Short forms on the command line of settings that lie deeper."""

LABELS = "labels"
"""Folder in a run that holds what it learns from."""


def parse(argv: Sequence[str]) -> AffinityConfig:
    """Settings from the command line; on --resume the run's own, then those given.

    Args:
        argv: arguments without the program's name.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run, or one of another kind, or one that was stopped before its training.
    """
    given = long_forms(argv, SHORT)
    run = RunFolder(value_of(given, "--output") or ".")
    if "--resume" in given and not run.exists() and (run.path / LABELS).is_dir():
        raise DataError(f"{run.path}: stopped while its labels were made; repeat that call, without --resume")
    default = resumed_settings(given, AffinityConfig) or AffinityConfig(masks=tyro.MISSING, output=tyro.MISSING)
    description = (
        "Train AffinityNet on what a labelling is sure of. Labels are made first, in OUTPUT/labels; a call that was "
        "stopped there goes on when it is repeated. --crop is short for --augment.crop; --resume takes the run's own "
        "settings."
    )
    return tyro.cli(AffinityConfig, args=given, default=default, prog="cpn affinity", description=description)
