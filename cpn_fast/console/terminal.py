"""What long commands show while they work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cpn_fast.files.progress import Advance, duration

_LINE_EVERY = 60.0
"""Seconds between two lines of progress where the output is no terminal, such as a cluster's log."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "? images/s")


class TerminalProgress:
    """Lines, tables and bars on the terminal.

    Args:
        console: where to draw; None = stdout.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def say(self, what: object) -> None:
        """Print one line of plain text, or draw what rich can."""
        self.console.print(what, highlight=False, markup=False, soft_wrap=isinstance(what, str))

    @contextmanager
    def items(self, what: str, total: int) -> Iterator[Advance]:
        """A bar over images with rate and time left; gives the function that moves it on by some."""
        with item_progress(self.console, what, total) as advance:
            yield advance


@contextmanager
def item_progress(console: Console, what: str, total: int) -> Iterator[Advance]:
    """A progress bar over images with rate and time left; yields the function that moves it on by some.

    Where there is no terminal, a line a minute says the same.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    start = said = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, state="")

        def advance(count: int, state: str = "") -> None:
            nonlocal said
            progress.update(task, advance=count, state=state)
            now = time.monotonic()
            if not console.is_terminal and now - said >= _LINE_EVERY:
                said = now
                done = progress.tasks[task].completed
                rate = done / (now - start)
                left = duration((total - done) / rate)
                line = f"{what}: {done:.0f} of {total} images, {rate:.1f} images/s, {left} left"
                console.print(f"{line}, {state}" if state else line, highlight=False, markup=False, soft_wrap=True)

        yield advance
