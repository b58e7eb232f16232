"""How far every row of a table stands from its first one, with paired intervals over images, and seeds if several."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpn_fast.metrics.bootstrap import Comparison, compare_halves
from cpn_fast.metrics.image_counts import COUNTS_NAME, ImageCounts, ScoredImages, read_counts
from cpn_fast.reproduce.runs import scores_folder
from cpn_fast.reproduce.summary import Measurement

RESAMPLES = 2000
LEAST_IMAGES = 4
"""Images below which halves of them say nothing."""


@dataclass(frozen=True)
class Difference:
    """A row beside the first one.

    Attributes:
        row: its name.
        first: the first row's.
        seeds: that both have.
        found: best background score of each run on images at even positions, mIoU in 0..1 at it on those at odd ones.
    """

    row: str
    first: str
    seeds: tuple[int, ...]
    found: Comparison

    def __str__(self) -> str:
        value, low, high = (100 * part for part in dataclasses.astuple(self.found.difference))
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
        return (
            f"{self.row} against {self.first}: {value:+.1f} [{low:+.1f}, {high:+.1f}] "
            f"({100 * self.found.second.value:.1f} and {100 * self.found.first.value:.1f}; n = {self.found.images}, "
            f"{seeds})"
        )

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "row": self.row,
            "first": self.first,
            "seeds": list(self.seeds),
            "interval": "95%, paired bootstrap over the images at odd positions" + (", and seeds" * self._several),
            "resamples": RESAMPLES,
            **dataclasses.asdict(self.found),
        }

    @property
    def _several(self) -> bool:
        return len(self.seeds) > 1


def differences(root: Path, rows: Sequence[str], measurements: Sequence[Measurement]) -> Iterator[Difference]:
    """Every row beside the first, over the seeds that both have; rows without per-image counts are left out.

    Args:
        root: the folder of all tables.
        rows: names, in the order of the table.
        measurements: what was measured.

    Raises:
        DataError: for counts that cannot be read.
    """
    paths = {
        (found.row, found.seed): (
            scores_folder(root / found.about["run"], found.about["refined"]) / COUNTS_NAME,
            found.default_map,
        )
        for found in measurements
        if found.figures
    }
    counted = {key: value for key, value in paths.items() if value[0].is_file()}
    first, *others = rows

    def of(row: str, seed: int) -> tuple[ScoredImages, ImageCounts]:
        path, default_map = counted[row, seed]
        scored = read_counts(path)
        return scored, scored.maps[default_map]

    for row in others:
        seeds = tuple(seed for name, seed in counted if name == row and (first, seed) in counted)
        if not seeds:
            continue
        groups = [[of(name, seed) for seed in seeds] for name in (first, row)]
        scored = groups[0][0][0]
        if len(scored.ids) < LEAST_IMAGES:
            continue
        left, right = ([counts for _, counts in group] for group in groups)
        yield Difference(row, first, seeds, compare_halves(left, right, len(scored.classes), RESAMPLES, 0))
