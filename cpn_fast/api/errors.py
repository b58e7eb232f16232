"""Errors in the words of Python: what the command line calls `--max-side` is `max_side` here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from cpn_fast.files.errors import DataError

_QUOTED = re.compile(r"`[^`]*`")
_OPTION = re.compile(r"(?<![\w-])--(no-)?([a-z][a-z0-9-]*)")


@contextmanager
def in_python_words() -> Iterator[None]:
    """Name arguments instead of command-line options in the `DataError` that the block raises."""
    try:
        yield
    except DataError as error:
        error.args = (python_words(str(error)),)
        raise


def python_words(message: str) -> str:
    """A message with `max_side` for `--max-side`, but for the commands in it, which stand in backquotes."""
    parts, end = [], 0
    for command in _QUOTED.finditer(message):
        parts += [_OPTION.sub(_argument, message[end : command.start()]), command[0]]
        end = command.end()
    return "".join([*parts, _OPTION.sub(_argument, message[end:])])


def _argument(option: re.Match[str]) -> str:
    return option[2].replace("-", "_") + ("=False" if option[1] else "")
