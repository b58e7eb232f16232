"""`cpn affinity`: from a labelling's class maps to a trained AffinityNet."""

from __future__ import annotations

from collections.abc import Sequence

from cpn_fast.affinity.task import LABELS, AffinityStage
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import AffinityConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.options import long_forms, resumed_settings, value_of
from cpn_fast.training.run import run_stage

SHORT = {"--crop": "--augment.crop"}
"""Short forms on the command line of settings that lie deeper."""


def parse(argv: Sequence[str]) -> AffinityConfig:
    """Settings from the command line; on --resume the run's own, then those given.

    Args:
        argv: arguments without the program's name.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run, or one of another kind, or one that was stopped before its training.
    """
    import tyro

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


def run_affinity(config: AffinityConfig) -> RunFolder:
    """Make labels and train one run (the same in every process of a distributed one).

    Args:
        config: the settings.

    Returns:
        The run folder, with final weights.

    Raises:
        DataError: if labelling, weights or settings do not fit, the folder holds a run and `resume` is off, or the
            labels of a resumed run have changed.
        NonFiniteError: if a loss or gradient was not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    return run_stage(with_recipe(config), AffinityStage)
