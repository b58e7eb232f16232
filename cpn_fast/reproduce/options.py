"""Options of `cpn reproduce`; free of torch, so that its --help is there at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cpn_fast.cam.options import parse as train_parse
from cpn_fast.config.demo import cam_recipe
from cpn_fast.config.refine import ScalesOf
from cpn_fast.config.training import TrainConfig
from cpn_fast.files.errors import DataError
from cpn_fast.reproduce.tables import TABLES, TableName
from cpn_fast.training.options import value_of

ROWS_DECIDE = ("--method", "--seed", "--resume")
"""Options of `cpn train` that the rows, --seeds and the folder decide."""
PAPER_BATCH = 4
DESCRIPTION = (
    "Train and score the rows of one of the paper's tables, or resume it after a stop, and set the paper's figures "
    "beside ours: cpn reproduce TABLE --data SOURCE --output DIR. Every option of `cpn train` is taken too and holds "
    "for all rows (--backbone, --weights, --epochs, --lr, --crop, --options.map-norm ...; `cpn train --help` lists "
    "them), but for --method, --seed and --resume. Rows that are the same training are trained once, whichever table "
    "they stand in."
)


@dataclass(frozen=True)
class ReproduceConfig:
    """One of the paper's tables on any source.

    Attributes:
        table: which; `readings` changes one open reading of the method at a time, `methods` sets all methods side by
            side, with their own refinement and with raw refinement, `time` measures patch generation.
        base: the training that every row begins with, and the source (`data`) and folder (`output`) of all.
        seeds: each row is trained once with each, e.g. `--seeds 1 2 3`.
        budget: share of the recipe's epochs, in (0, 1]: 0.25 trains each row for a quarter of them.
        images: at most so many images are scored (or timed), spread evenly over the split; None = all (timed: 50).
        split: split to train on; None = `train_aug` where the source has it, else `train`.
        eval_split: split with masks to score on; None = train, as in the paper (for `demo:` val).
        scales: each is scored alone, and all together; None = 0.5 1 1.5 2 (for `demo:` 0.5 1 1.5), of the training
            size 1 1.5 2.
        scales_of: whether scales are factors of the "image", or of the mean long side of the "training" images; None =
            of the training for `methods`, else of the image.
        max_side: longer images are reduced to this long side in pixels before they are scored, e.g. to the size that
            small crops have seen of them; None = as `cpn evaluate` does.
        jobs: trainings side by side, which share the cores; their output is in `jobs/*.log`.
    """

    table: Annotated[TableName, tyro.conf.Positional]
    base: Annotated[TrainConfig, tyro.conf.Suppress]
    seeds: tuple[int, ...] = (0,)
    budget: float = 1.0
    images: int | None = None
    split: str | None = None
    eval_split: str | None = None
    scales: tuple[float, ...] | None = None
    scales_of: ScalesOf | None = None
    max_side: int | None = None
    jobs: int = 1


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
    if (value_of(rest, "--data") or "").startswith("demo:"):
        return dataclasses.replace(config, base=train_parse(rest, cam_recipe, TABLES[config.table].preset))
    base = train_parse(rest)

    def recipe(config: TrainConfig) -> TrainConfig:
        batch = PAPER_BATCH if base.backbone == "resnet38" else config.loop.batch_size
        loop = dataclasses.replace(config.loop, batch_size=batch)
        return dataclasses.replace(config, backbone=base.backbone, augment=base.augment, loop=loop)

    return dataclasses.replace(config, base=train_parse(rest, recipe, TABLES[config.table].preset))
