"""What long commands show while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    def items(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over images with rate and time left; gives the function that moves it on by some."""
        with item_progress(self.console, what, total) as advance:
            yield advance


@contextmanager
def item_progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over images with rate and time left; yields the function that moves it on by some."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
