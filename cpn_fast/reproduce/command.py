"""`cpn reproduce`: one of the paper's tables on any source."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from cpn_fast import demo, train
from cpn_fast.config import TrainConfig, with_recipe
from cpn_fast.data.open import open_source
from cpn_fast.data.parallel import folder_lock
from cpn_fast.data.types import Source
from cpn_fast.demo_pretrain import pretrain_backbone
from cpn_fast.files.errors import DataError
from cpn_fast.inference import check_counts, spread_evenly
from cpn_fast.models.labeller import SCALES
from cpn_fast.output_folder import explained_writes
from cpn_fast.reproduce import measure_time
from cpn_fast.reproduce.report import Report, check_settings, print_report, write_report
from cpn_fast.reproduce.runs import RunStore, Scoring, need_masks
from cpn_fast.reproduce.summary import Measurement
from cpn_fast.reproduce.tables import TABLES, TableName

log = logging.getLogger(__name__)

ROWS_DECIDE = ("--method", "--seed", "--resume")
"""Options of `cpn train` that the rows, --seeds and the folder decide."""
PAPER_BATCH = ("--batch-size", "4")
DESCRIPTION = (
    "Train and score the rows of one of the paper's tables, or go on where it stopped, and set the paper's figures "
    "beside ours: cpn reproduce TABLE --data SOURCE --output DIR. Every option of `cpn train` is taken too and holds "
    "for all rows (--backbone, --weights, --epochs, --lr, --crop, --options.map-norm ...; `cpn train --help` lists "
    "them), but for --method, --seed and --resume. Rows that are the same training are trained once, whichever table "
    "they stand in."
)


@dataclass(frozen=True)
class ReproduceConfig:
    """One of the paper's tables on any source.

    Attributes:
        table: which; `readings` changes one open reading of the method at a time, `time` measures patch generation.
        base: the training that every row begins with, and the source (`data`) and folder (`output`) of all.
        seeds: each row is trained once with each, e.g. `--seeds 1 2 3`.
        budget: share of the recipe's epochs, in (0, 1]: 0.25 trains each row for a quarter of them.
        images: at most so many images are scored (or timed), spread evenly over the split; None = all (timed: 50).
        split: split to train on; None = `train_aug` where the source has it, else `train`.
        eval_split: split with masks to score on; None = train, as in the paper (for `demo:` val).
        scales: each is scored alone, and all together; None = 0.5 1 1.5 2 (for `demo:` 0.5 1 1.5).
    """

    table: Annotated[TableName, tyro.conf.Positional]
    base: Annotated[TrainConfig, tyro.conf.Suppress]
    seeds: tuple[int, ...] = (0,)
    budget: float = 1.0
    images: int | None = None
    split: str | None = None
    eval_split: str | None = None
    scales: tuple[float, ...] | None = None


def parse(argv: Sequence[str]) -> ReproduceConfig:
    """Settings from the command line: our own options, and all others as `cpn train` reads them.

    For `demo:` the demo's recipe is the default, for others the backbone's; with ResNet38 the paper's batch of 4. The
    preset is `paper`, for `readings` `default`.

    Args:
        argv: arguments without the program's name.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: for an option that the rows decide.
    """
    blank = ReproduceConfig(table=tyro.MISSING, base=TrainConfig(data="", output=Path()))
    config, rest = tyro.cli(
        ReproduceConfig, args=argv, default=blank, return_unknown_args=True, prog="cpn reproduce",
        description=DESCRIPTION,
    )  # fmt: skip
    names = [word.partition("=")[0].replace("_", "-") for word in rest]
    for name in ROWS_DECIDE:
        if name in names:
            raise DataError(f"{name}: the rows of a table decide on it; expected --seeds for seeds, and no {name}")
    base = train.parse(rest)
    defaults: list[str] = [] if "--preset" in names else ["--preset", TABLES[config.table].preset]
    if base.data.startswith("demo:"):
        defaults += [*demo.RECIPE, *demo.METHOD_OPTIONS["cpn"]]
    elif base.backbone == "resnet38":
        defaults += PAPER_BATCH
    return dataclasses.replace(config, base=train.parse([*defaults, *rest]))


def run_reproduce(config: ReproduceConfig) -> Report:
    """Make a table, or what is missing of it; writes TABLE.csv, TABLE.json and TABLE.png after every measurement.

    Args:
        config: what, on which source, how much of it.

    Returns:
        The table with all its measurements.

    Raises:
        DataError: for settings or data that do not fit (before anything is trained), a table or run of other settings
            in the folder, and as `run_train` and `run_evaluate` do.
    """
    _check(config)
    table, output = TABLES[config.table], config.base.output
    source = open_source(config.base.data)
    with explained_writes(output, "the tables"):
        output.mkdir(parents=True, exist_ok=True)
    base, recipe_epochs = settled_base(config, source)
    scoring = Scoring(*_scored_on(config, source))
    store = RunStore(output, source, scoring)
    rows = table.rows(base)
    timed = table.measured == "time"
    split, records, every = scoring.records(source)
    if timed:
        records = spread_evenly(source.records(base.split), config.images or measure_time.IMAGES)
    else:
        need_masks(source, scoring)
        log.info("%d of %d images of split %r are scored", len(records), every, split)
    identity = {name: value for name, value in store.identity(base).items() if name not in ("method", "seed")}
    settings = {**identity, "source": source.spec, "eval_split": split, "scales": list(scoring.scales),
                "images": len(records), "all_images": every, "recipe_epochs": recipe_epochs}  # fmt: skip
    check_settings(output, config.table, settings)
    report = Report(
        name=config.table,
        table=table,
        rows=rows,
        columns=table.columns_at(scoring.scales),
        seeds=config.seeds,
        measurements=(),
        settings=settings,
        shortened="" if timed else shortened(base, recipe_epochs, len(records), every),
        where=f"{source.spec} ({base.split if timed else split}, {len(records)} images), {base.backbone}",
    )
    found: Iterator[Measurement]
    if timed:
        found = measure_time.measurements(rows, source, records, base, config.seeds)
    else:
        found = store.measurements(rows, base, config.seeds, report.columns)
    for measurement in found:
        report = dataclasses.replace(report, measurements=(*report.measurements, measurement))
        write_report(output, report)
    console = Console()
    print_report(console, report)
    console.print(f"{output / config.table}.csv, .json, .png", highlight=False, soft_wrap=True)
    return report


def _check(config: ReproduceConfig) -> None:
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise DataError(f"--seeds {' '.join(map(str, config.seeds))}: expected at least one, each once")
    if not 0 < config.budget <= 1:
        raise DataError(f"--budget {config.budget:g}: expected a share of the recipe's epochs above 0, at most 1")
    if config.images is not None:
        check_counts(images=config.images)
    processes = int(os.environ.get("WORLD_SIZE", config.base.devices))
    if processes > 1:
        raise DataError(
            f"{processes} processes: cpn reproduce trains in one; expected --devices 1 and no torchrun. To use several "
            "GPUs, start a call for each table or seed with its own CUDA_VISIBLE_DEVICES and the same --output"
        )


def shortened_epochs(epochs: int, budget: float) -> int:
    """The nearest whole number of epochs to a share of the recipe's, at least one."""
    return max(1, round(epochs * budget))


def shortened(base: TrainConfig, recipe_epochs: int, images: int, every: int) -> str:
    """What was cut off the recipe in words, "" where nothing was."""
    if base.epochs == recipe_epochs and images == every and base.max_steps is None:
        return ""
    steps = "" if base.max_steps is None else f", stopped after {base.max_steps} steps"
    return f"shortened: {base.epochs} of {recipe_epochs} epochs{steps}, {images} of {every} images scored"


def settled_base(config: ReproduceConfig, source: Source) -> tuple[TrainConfig, int]:
    """The base with recipe, split, weights and budget filled in, and the recipe's epochs before the budget.

    Raises:
        DataError: where the demo's backbone cannot be pretrained.
    """
    splits = source.splits()
    split = config.split or ("train_aug" if "train_aug" in splits else "train" if "train" in splits else splits[0])
    base = with_recipe(dataclasses.replace(config.base, split=split))
    epochs = base.epochs or 1
    base = dataclasses.replace(base, epochs=shortened_epochs(epochs, config.budget))
    if TABLES[config.table].measured == "time" or base.weights is not None:
        return base, epochs
    if not source.spec.startswith("demo:"):
        log.warning("no --weights: every row trains its backbone from scratch; the paper's begins with ImageNet's")
        return base, epochs
    weights = base.output / "backbone.safetensors"
    with folder_lock(base.output):
        if not weights.is_file():
            log.info("no --weights: pretraining the demo's backbone, %s", weights)
            accuracy = pretrain_backbone(source.spec, weights)
            log.info("its accuracy on objects held out: %.3f", accuracy)
    return dataclasses.replace(base, weights=weights), epochs


def _scored_on(config: ReproduceConfig, source: Source) -> tuple[Any, ...]:
    of_demo = source.spec.startswith("demo:")
    split = config.eval_split or ("val" if of_demo else None)
    scales = config.scales or (tuple(map(float, demo.SCALES)) if of_demo else SCALES)
    return split, scales, config.images
