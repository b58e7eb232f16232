"""What a long piece of work tells whoever waits for it. Library functions are silent; commands pass a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, count: int, state: str = "") -> None:
        """By `count` items; `state` is what else is to be known now, in a few words, "" for nothing."""


class Progress(Protocol):
    """Where lines and bars go."""

    def say(self, what: object) -> None:
        """One line of plain text, or something that the terminal can draw, such as a table."""

    def items(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """A bar over `total` items; gives the function that moves it on by some."""


class _Silent:
    def say(self, what: object) -> None:
        """Nothing."""

    @contextmanager
    def items(self, what: str, total: int) -> Iterator[Advance]:
        """A bar that nobody sees."""
        del what, total
        yield lambda count, state="": None


SILENT: Progress = _Silent()
"""Says nothing."""


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
