"""Options of `cpn compare`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class CompareConfig:
    """Compare scored runs or masks: differences of mIoU with a paired bootstrap over their images.

    Each target is a folder that `cpn evaluate` scored (it holds counts.npz), with `:cam` or `:rcam` behind it for a map
    other than the run's own, and `@0.45` behind that for its masks at a background score of 0, 0.01, ..., 1 instead of
    the best one; several runs of one setting, one for each seed, are one target separated by commas. Every
    further target is compared with the first.

    Attributes:
        target: what the others are compared with.
        others: what is compared with it.
        resamples: of the bootstrap.
        seed: of the resampling.
        output: a JSON file for the figures; None = none.
    """

    target: Annotated[str, tyro.conf.Positional]
    others: Annotated[tuple[str, ...], tyro.conf.Positional]
    resamples: int = 2000
    seed: int = 0
    output: Path | None = None
