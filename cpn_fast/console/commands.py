"""The command line as a value, handed down to the commands that call other commands; nothing below imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CommandLine:
    """What the pipeline and the demo need of the command line.

    Attributes:
        parse: words of a command, its name first -> its config, without running it.
        run: the same words -> what the command's function returns.
    """

    parse: Callable[[Sequence[str]], Any]
    run: Callable[[Sequence[str]], Any]
