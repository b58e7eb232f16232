"""`cpn compare`: differences of mIoU between scored runs, with intervals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.options import check_positive
from cpn_fast.metrics.bootstrap import Comparison, Estimate, compare_best, compare_halves
from cpn_fast.metrics.image_counts import COUNTS_NAME, ImageCounts, ScoredImages, read_counts
from cpn_fast.scoring.compare_options import CompareConfig

MAPS = ("cam", "rcam", "masks")
PROTOCOLS = {
    "halves": "beta chosen on even positions, mIoU on odd ones",
    "best": "the paper's way: best beta and mIoU on the same images",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What one argument names.

    Attributes:
        name: the argument.
        scored: the counts of each of its runs.
        runs: of each, those of its chosen map.
        betas: of each the background score that the argument names; None = the best one.
    """

    name: str
    scored: tuple[ScoredImages, ...]
    runs: tuple[ImageCounts, ...]
    betas: tuple[float | None, ...]


def run_compare(config: CompareConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Compare every further target with the first.

    Args:
        config: which, and how.
        progress: shown the table.

    Returns:
        under `comparisons` one entry per target: its name, seeds, and per protocol ("halves", "best") `images`, mIoU of
        both and their difference with a 95% interval each, all in 0..1, and the betas.

    Raises:
        DataError: for a target that was not scored, or one of other images or classes than the first.
    """
    check_positive(resamples=config.resamples)
    if not config.others:
        raise DataError("cpn compare needs at least two targets: what the others are compared with, and another")
    first = open_target(config.target)
    comparisons = []
    for name in config.others:
        second = open_target(name)
        _check_same(first, second)
        comparisons.append((second, _compare(config, first, second)))
    found = {
        "first": first.name,
        "seeds": len(first.runs),
        "resamples": config.resamples,
        "seed": config.seed,
        "interval": "95%, percentiles of a paired bootstrap over images" + _seeds_too(first, comparisons),
        "comparisons": [
            {
                "second": second.name,
                "seeds": len(second.runs),
                **{protocol: dataclasses.asdict(result) for protocol, result in results.items()},
            }
            for second, results in comparisons
        ],
    }
    progress.say(_table(first, comparisons))
    progress.say(f"{found['interval']}; {config.resamples} resamples")
    if config.output is not None:
        atomic_write_text(config.output, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        progress.say(str(config.output))
    return found


def open_target(text: str) -> Target:
    """The runs that an argument names, `FOLDER[:MAP][@BETA][,FOLDER...]`.

    Raises:
        DataError: for a folder without counts, a map that it does not have, a background score that is not on the grid
            or of masks that were read, or runs of other images or classes.
    """
    scored, runs, betas = [], [], []
    for part in text.split(","):
        named, beta = (part, None) if Path(part).exists() else _split_beta(part)
        folder, wanted = (named, None) if Path(named).exists() else _split_map(named)
        path = Path(folder)
        if not path.exists():
            raise DataError(
                f"{folder}: no such folder; expected a run or a folder of masks that `cpn evaluate` has scored"
            )
        counts = read_counts(path / COUNTS_NAME if path.is_dir() or not path.suffix else path)
        name = wanted or next(name for name in ("rcam", "cam", "masks") if name in counts.maps)
        if name not in counts.maps:
            raise DataError(f"{part}: {counts.path} has no map {name}, only {', '.join(counts.maps)}")
        scored.append(counts)
        runs.append(counts.maps[name] if beta is None else _at(counts.maps[name], beta, part))
        betas.append(beta)
    target = Target(text, tuple(scored), tuple(runs), tuple(betas))
    _check_same(target, target)
    return target


def _split_map(part: str) -> tuple[str, str | None]:
    folder, colon, name = part.rpartition(":")
    return (folder, name) if colon and name in MAPS else (part, None)


def _split_beta(part: str) -> tuple[str, float | None]:
    named, at, text = part.rpartition("@")
    try:
        return (named, float(text)) if at else (part, None)
    except ValueError:
        return part, None


def _at(counts: ImageCounts, beta: float, part: str) -> ImageCounts:
    if not 0 <= beta <= 1 or abs(100 * beta - round(100 * beta)) > 1e-6:
        raise DataError(f"{part}: the background score {beta:g} is not one of 0, 0.01, ..., 1")
    if not counts.has_beta:
        raise DataError(f"{part}: these are masks, which have no background score; leave @{beta:g} out")
    return counts.at(beta)


def _check_same(first: Target, second: Target) -> None:
    """Refuse targets that were not scored on the same images in the same order, or with other classes."""
    expected = first.scored[0]
    for other in (*first.scored, *second.scored):
        if other.classes != expected.classes:
            raise DataError(f"{other.path}: classes {', '.join(other.classes)}; {expected.path} has others")
        if other.ids != expected.ids:
            odd = sorted(set(other.ids) ^ set(expected.ids))
            what = f"{len(odd)} images are in one of them only, the first {odd[0]}" if odd else "their order differs"
            raise DataError(
                f"{other.path} ({len(other.ids)} images) and {expected.path} ({len(expected.ids)}) were not scored on "
                f"the same images: {what}; score both on the same split"
            )


def _compare(config: CompareConfig, first: Target, second: Target) -> dict[str, Comparison]:
    num_classes = len(first.scored[0].classes)
    if len(first.scored[0].ids) < 2:
        raise DataError(f"{first.scored[0].path}: one image; a comparison needs at least two")
    if not any((run.truths > 0).any() for run in (*first.runs, *second.runs)):
        raise DataError(
            f"{first.scored[0].path}: no pixel of any class in the ground truth: all background would be perfect; "
            "compare on images with masks of the classes"
        )
    arguments = (first.runs, second.runs, num_classes, config.resamples, config.seed)
    found = {"halves": compare_halves(*arguments), "best": compare_best(*arguments)}
    return {
        protocol: dataclasses.replace(result, betas=(_named(first, result.betas[0]), _named(second, result.betas[1])))
        for protocol, result in found.items()
    }


def _named(target: Target, chosen: Sequence[float]) -> tuple[float, ...]:
    """The background scores: those that the argument names, where it does."""
    return tuple(best if beta is None else beta for best, beta in zip(chosen, target.betas, strict=True))


def _seeds_too(first: Target, comparisons: Sequence[tuple[Target, Any]]) -> str:
    several = max(len(target.runs) for target in (first, *(second for second, _ in comparisons)))
    return " and runs" if several > 1 else ""


def _points(estimate: Estimate, sign: str = "") -> str:
    value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _table(first: Target, comparisons: Sequence[tuple[Target, dict[str, Comparison]]]) -> Table:
    table = Table(title=f"mIoU in % compared with {first.name}, seeds {len(first.runs)}", title_justify="left")
    for column in ("target", "protocol"):
        table.add_column(column, overflow="fold")
    for column in ("seeds", "n", "first", "this", "difference"):
        table.add_column(column, justify="right")
    for second, results in comparisons:
        for protocol, found in results.items():
            table.add_row(
                second.name, PROTOCOLS[protocol], str(len(second.runs)), str(found.images),
                _points(found.first), _points(found.second), _points(found.difference, "+"),
            )  # fmt: skip
    return table
