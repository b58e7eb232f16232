"""What a person sees of a running training, and metrics.jsonl."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

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

log = logging.getLogger(__name__)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("  ? images/s")
        return Text(f"{task.speed * task.fields['batch_size']:.1f} images/s")


class TrainProgress:
    """The progress bar with loss parts, images/s, time left and peak memory; log lines where there is no terminal.

    Args:
        total_steps: steps of the run.
        start_step: steps done before.
        batch_size: images per step over all processes.
        log_every: steps between log lines.
        enabled: False on all processes but the first.
        console: where to draw; None = stderr.
        losses: names of the loss parts to show, where a record has them.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        batch_size: int,
        log_every: int,
        enabled: bool = True,
        console: Console | None = None,
        losses: Sequence[str] = ("loss",),
    ) -> None:
        self.losses = tuple(losses)
        console = console or Console(stderr=True)
        self.enabled, self.log_every, self.total_steps = enabled, log_every, total_steps
        self.drawn = enabled and console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not self.drawn,
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task(
            "train", total=total_steps, completed=start_step, batch_size=batch_size, state=""
        )

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step record."""
        losses = " ".join(f"{name} {record[name]:.3f}" for name in self.losses if name in record)
        state = f"{losses} | peak {record['peak_memory_mib'] / 1024:.1f} GiB"
        self._progress.update(self._task, completed=record["step"], state=state)
        due = record["step"] % self.log_every == 0 or record["step"] == self.total_steps
        if self.enabled and not self.drawn and due:
            left = (self.total_steps - record["step"]) * record["seconds"]
            log.info(
                "step %d/%d %s | %.1f images/s, %s left",
                record["step"], self.total_steps, state, record["images_per_second"], _clock(left),
            )  # fmt: skip

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self.drawn:
            self._progress.console.print(text, highlight=False, markup=False)
        elif self.enabled:
            log.info("%s", text)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
