"""What the command lines of all kinds of training share: settings that --resume takes from the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cpn_fast.config.training import C
from cpn_fast.runs.folder import RunFolder


def value_of(argv: Sequence[str], name: str) -> str | None:
    """What `--name value` or `--name=value` says among the arguments; None without it."""
    for index, argument in enumerate(argv):
        if argument == name and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def parse_training(argv: Sequence[str], default: C, prog: str, description: str) -> C:
    """Settings of a training from the command line; on --resume the run's own, then those given.

    Args:
        argv: arguments without the program's name.
        default: what the arguments override where no run is resumed.
        prog: the command, for the help.
        description: of it, for the help.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run of this kind.
    """
    import tyro

    kind, output = type(default), value_of(argv, "--output")
    if "--resume" in argv and output is not None:
        default = dataclasses.replace(RunFolder(output).config_of(kind), resume=False)
    return tyro.cli(kind, args=list(argv), default=default, prog=prog, description=description)
