"""What the command lines of all kinds of training share: short forms, and settings that --resume takes from the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cpn_fast.config.training import C
from cpn_fast.runs.folder import RunFolder


def long_forms(argv: Sequence[str], short: Mapping[str, str]) -> list[str]:
    """Arguments with short option names replaced, and `_` in option names by `-`.

    Args:
        argv: `--option value` or `--option=value`.
        short: short form -> long form.
    """
    return [_long_form(argument, short) for argument in argv]


def _long_form(argument: str, short: Mapping[str, str]) -> str:
    name, equals, value = argument.partition("=")
    return short.get(name, name.replace("_", "-") if name.startswith("--") else name) + equals + value


def value_of(argv: Sequence[str], name: str) -> str | None:
    """What `--name value` or `--name=value` says among the arguments; None without it."""
    for index, argument in enumerate(argv):
        if argument == name and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def resumed_settings(argv: Sequence[str], kind: type[C]) -> C | None:
    """The settings of the run in --output where --resume is among the arguments; None for a new run.

    Args:
        argv: arguments with long option names.
        kind: which kind of training.

    Raises:
        DataError: where --resume finds no run of this kind.
    """
    output = value_of(argv, "--output")
    if "--resume" not in argv or output is None:
        return None
    return dataclasses.replace(RunFolder(output).config_of(kind), resume=False)
