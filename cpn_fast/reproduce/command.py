"""`cpn reproduce`: one of the paper's tables on any source."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cpn_fast.config.demo import SCALES as DEMO_SCALES
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.refine import ScalesOf
from cpn_fast.config.scales import CAM_SCALES, TRAINING_SCALES
from cpn_fast.config.training import TrainConfig, replace_dotted
from cpn_fast.data.loading.parallel import folder_lock
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import spread_evenly
from cpn_fast.data.types import Source
from cpn_fast.demo.pretrain import pretrain_backbone
from cpn_fast.files.errors import DataError
from cpn_fast.files.output_folder import raise_io_errors_as
from cpn_fast.inference.options import check_positive
from cpn_fast.pipeline.command import run_pipeline
from cpn_fast.reproduce import final, measure_time
from cpn_fast.reproduce.differences import differences
from cpn_fast.reproduce.jobs import run_ahead
from cpn_fast.reproduce.options import ReproduceConfig
from cpn_fast.reproduce.report import Report, check_settings, print_report, write_report
from cpn_fast.reproduce.runs import RunStore, Scoring, need_masks
from cpn_fast.reproduce.summary import Measurement
from cpn_fast.reproduce.tables import TABLES

log = logging.getLogger(__name__)


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
    output = config.base.output
    source = open_source(config.base.data)
    with raise_io_errors_as(output, "the tables"):
        output.mkdir(parents=True, exist_ok=True)
    report, found = MADE[TABLES[config.table].measured](config, source)
    for measurement in found:
        report = dataclasses.replace(report, measurements=(*report.measurements, measurement))
        write_report(output, report)
    if report.table.measured == "trained":
        names = [row.name for row in report.rows]
        report = dataclasses.replace(report, differences=tuple(differences(output, names, report.measurements)))
        write_report(output, report)
    console = Console()
    print_report(console, report)
    console.print(f"{output / config.table}.csv, .json, .png", highlight=False, soft_wrap=True)
    return report


Begun = tuple[Report, Iterator[Measurement]]
"""A table without any figure yet, and where its measurements come from."""


def begin_trained(config: ReproduceConfig, source: Source) -> Begun:
    """A table whose rows are trained and scored.

    Raises:
        DataError: for a split that cannot be scored, or a table of other settings in the folder.
    """
    of_demo = source.spec.startswith("demo:")
    scales_of = config.scales_of or TABLES[config.table].scales_of
    scoring = Scoring(
        config.eval_split or ("val" if of_demo else None),
        config.scales or _scales(of_demo, scales_of),
        config.images,
        config.max_side,
        scales_of,
    )
    need_masks(source, scoring)
    base, recipe_epochs = settled_base(config, source)
    base = dataclasses.replace(base, weights=backbone_weights(base, source))
    split, records, every = scoring.records(source)
    store = RunStore(base.output, source, scoring)
    identity = {name: value for name, value in store.identity(base).items() if name not in ("method", "seed")}
    settings = {**identity, "source": source.spec, "eval_split": split, "scales": list(scoring.scales),
                "images": len(records), "all_images": every, "recipe_epochs": recipe_epochs}  # fmt: skip
    if scoring.max_side is not None:
        settings["max_side"] = scoring.max_side
    if scales_of != "image":
        settings["scales_of"] = scales_of
    report = begin_report(
        config,
        base,
        columns=TABLES[config.table].columns_at(scoring.scales),
        settings=settings,
        shortened=shortened(base, recipe_epochs, len(records), every),
        where=f"{source.spec} ({split}, {len(records)} images), {base.backbone}",
    )
    return report, _measurements(store, report, base, config)


def _measurements(store: RunStore, report: Report, base: TrainConfig, config: ReproduceConfig) -> Iterator[Measurement]:
    """All figures; with several jobs once these have made what they are of."""
    if config.jobs > 1:
        run_ahead(store, store.tasks(report.rows, base, config.seeds), config.jobs)
    yield from store.measurements(report.rows, base, config.seeds, report.columns)


def _scales(of_demo: bool, scales_of: ScalesOf) -> tuple[float, ...]:
    if scales_of == "training":
        return TRAINING_SCALES
    return DEMO_SCALES if of_demo else CAM_SCALES


def begin_time(config: ReproduceConfig, source: Source) -> Begun:
    """A table whose rows are ways to make patches. Raises DataError for a table of other settings in the folder."""
    base, _ = settled_base(config, source)
    records = spread_evenly(source.records(base.split), config.images or measure_time.IMAGES)
    patch = {f"patch.{name}": getattr(base.patch, name) for name in ("segments", "compactness", "grid_sides")}
    crop = {"augment.crop": base.augment.crop, "augment.resize": base.augment.resize_range()}
    report = begin_report(
        config,
        base,
        columns=TABLES[config.table].columns,
        settings={"source": source.spec, "split": base.split, "images": len(records), **patch, **crop},
        shortened="",
        where=f"{source.spec} ({base.split}, {len(records)} images), crops of {base.augment.crop} px, "
        f"S_N {base.patch.segments}",
    )
    return report, measure_time.measurements(report.rows, source, records, base, config.seeds)


def begin_pipeline(config: ReproduceConfig, source: Source) -> Begun:
    """The table whose rows are stages of a whole pipeline.

    Raises:
        DataError: for a source without masks to score on, or a table of other settings in the folder.
    """
    of_demo = source.spec.startswith("demo:")
    scales = config.scales or (DEMO_SCALES if of_demo else CAM_SCALES)
    split = final.need_eval_split(source, config.eval_split)
    base, recipe_epochs = settled_base(config, source)
    base = dataclasses.replace(base, weights=backbone_weights(base, source))
    base = replace_dotted(base, TABLES["table1"].rows(base)[-1].train)  # the paper's CPN
    pipelines = {
        seed: final.pipeline_of(base, seed, split, scales, partial(shortened_epochs, budget=config.budget))
        for seed in config.seeds
    }
    stages = final.settings_of_stages(pipelines[config.seeds[0]])
    report = begin_report(
        config,
        base,
        columns=TABLES[config.table].columns,
        settings={"source": source.spec, "split": base.split, "eval_split": split, "scales": list(scales),
                  "backbone": base.backbone, "recipe_epochs": recipe_epochs, **stages},
        shortened=shortened(base, recipe_epochs, 0, 0),
        where=f"{source.spec} ({base.split}, {split}), {base.backbone}",
    )  # fmt: skip
    return report, final.measurements(report.rows, pipelines, report.columns[0], run_pipeline)


MADE: dict[str, Callable[[ReproduceConfig, Source], Begun]] = {
    "trained": begin_trained,
    "pipeline": begin_pipeline,
    "time": begin_time,
}
"""How the rows of a table become figures: what `Table.measured` names."""


def begin_report(
    config: ReproduceConfig,
    base: TrainConfig,
    *,
    columns: tuple[str, ...],
    settings: Mapping[str, Any],
    shortened: str,
    where: str,
) -> Report:
    """The report without any figure yet. Raises DataError for a table of other settings in the folder."""
    check_settings(base.output, config.table, settings)
    table = TABLES[config.table]
    return Report(
        name=config.table,
        table=table,
        rows=table.rows(base),
        columns=columns,
        seeds=config.seeds,
        measurements=(),
        settings=settings,
        shortened=shortened,
        where=where,
    )


def _check(config: ReproduceConfig) -> None:
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise DataError(f"--seeds {' '.join(map(str, config.seeds))}: expected at least one, each once")
    if not 0 < config.budget <= 1:
        raise DataError(f"--budget {config.budget:g}: expected a share of the recipe's epochs above 0, at most 1")
    if TABLES[config.table].measured == "pipeline":
        if config.images is not None:
            raise DataError(f"--images {config.images}: the stages of table5 score all images; leave it out")
        if config.max_side is not None:
            raise DataError(f"--max-side {config.max_side}: the stages of table5 have their own; leave it out")
    given = {"images": config.images, "max_side": config.max_side}
    check_positive(jobs=config.jobs, **{name: value for name, value in given.items() if value is not None})
    if config.jobs > 1 and TABLES[config.table].measured != "trained":
        raise DataError(f"--jobs {config.jobs}: {config.table} is made in one process; leave it out")
    if TABLES[config.table].measured != "trained" and config.scales_of is not None:
        raise DataError(f"--scales-of {config.scales_of}: {config.table} scores no single maps; leave it out")
    processes = int(os.environ.get("WORLD_SIZE", config.base.device.devices))
    if processes > 1:
        raise DataError(
            f"{processes} processes: cpn reproduce trains in one; expected --devices 1 and no torchrun. To use several "
            "GPUs, start a call for each table or seed with its own CUDA_VISIBLE_DEVICES and the same --output"
        )


def shortened_epochs(epochs: int, budget: float) -> int:
    """The nearest whole number of epochs to a share of the recipe's, at least one."""
    return max(1, math.floor(epochs * budget + 0.5))


def shortened(base: TrainConfig, recipe_epochs: int, images: int, every: int) -> str:
    """What was cut off the recipe in words, "" where nothing was."""
    if base.loop.epochs == recipe_epochs and images == every and base.loop.max_steps is None:
        return ""
    steps = "" if base.loop.max_steps is None else f", stopped after {base.loop.max_steps} steps"
    scored = f", {images} of {every} images scored" if every else ", the other trainings by the same share"
    return f"shortened: {base.loop.epochs} of {recipe_epochs} epochs{steps}{scored}"


def settled_base(config: ReproduceConfig, source: Source) -> tuple[TrainConfig, int]:
    """The base with recipe, split and budget filled in, and the recipe's epochs before the budget."""
    splits = source.splits()
    split = config.split or ("train_aug" if "train_aug" in splits else "train" if "train" in splits else splits[0])
    base = with_recipe(dataclasses.replace(config.base, split=split))
    epochs = base.loop.epochs or 1
    return replace_dotted(base, {"epochs": shortened_epochs(epochs, config.budget)}), epochs


def backbone_weights(base: TrainConfig, source: Source) -> Path | None:
    """The given weights; for the demo a backbone that is pretrained once for all tables of the folder; else None."""
    if base.weights is not None:
        return base.weights
    if not source.spec.startswith("demo:"):
        log.warning("no --weights: every row trains its backbone from scratch; the paper's begins with ImageNet's")
        return None
    weights = base.output / "backbone.safetensors"
    with folder_lock(base.output):
        if not weights.is_file():
            log.info("no --weights: pretraining the demo's backbone, %s", weights)
            accuracy = pretrain_backbone(source.spec, weights)
            log.info("its accuracy on objects held out: %.3f", accuracy)
    return weights
