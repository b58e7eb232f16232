"""What a loaded model can do, whether it is a run folder or an exported file. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from cpn_fast.api.images import ImageLabeller
from cpn_fast.data.types import Source
from cpn_fast.files.jobs import JobSummary
from cpn_fast.files.progress import SILENT, Progress

ModelKind = Literal["cam", "segmentation", "affinity"]
"""What the network gives: class activation maps, probabilities of every pixel, or affinities of pixels."""


class Model(Protocol):
    """A trained network: `Run`, or what another package's loader returns."""

    @property
    def path(self) -> Path:
        """The run folder or file."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K foreground classes; mask value c + 1 is `classes[c]`."""

    @property
    def kind(self) -> ModelKind:
        """What the network gives."""

    def labeller(
        self,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        beta: float | None = None,
        threshold: float | None = None,
        max_side: int | None = None,
        device: str | None = None,
    ) -> ImageLabeller:
        """A callable that labels photographs; None = the model's own settings, or their usual values."""

    def label(
        self,
        source: Source,
        output: Path,
        split: str | None = None,
        progress: Progress = SILENT,
        **options: Any,
    ) -> JobSummary:
        """Write the masks of a split; an interrupted labelling resumes."""


def shown(progress: Progress | bool) -> Progress:
    """Where progress goes: True = the terminal, False = nowhere."""
    if progress is True:
        from cpn_fast.console.terminal import TerminalProgress

        return TerminalProgress()
    return SILENT if progress is False else progress
