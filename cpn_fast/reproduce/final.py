"""The final table: one whole pipeline per seed, and what its stages measured."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpn_fast.config.recipes import AFFINITY_RECIPES, SEGMENT_RECIPES, for_backbone
from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.types import Source
from cpn_fast.demo import command as demo
from cpn_fast.files.errors import DataError
from cpn_fast.pipeline.plan import PipelineConfig
from cpn_fast.report.command import read_scores
from cpn_fast.reproduce.summary import Measurement
from cpn_fast.reproduce.tables import CAM_MASKS, SEGMENTED, SEGMENTED_CRF, WALKED, Row
from cpn_fast.segment.evaluate import CRF, MULTI

GIVEN = ("data", "output", "split", "backbone", "weights", "method", "preset", "seed", "resume", "augment.crop")
"""Settings of the training that are the pipeline's own, or (the preset) are there option by option."""

PAPER_WALK = ("--steps", "64", "--power", "8")

Pipeline = Callable[[PipelineConfig], Path]


def words_of(config: TrainConfig) -> list[str]:
    """The options of `cpn train` that give this config, but for those that the pipeline gives itself.

    Args:
        config: with nothing left to the recipe; its preset has been applied, so its options are given one by one.
    """
    blank = flat(config_to_dict(TrainConfig(data="", output=Path())))
    words: list[str] = []
    for name, value in flat(config_to_dict(config)).items():
        if name in GIVEN or value == blank[name]:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            path, _, last = option.rpartition(".")
            negative = f"{path}.no-{last}" if path else f"no-{last}"
            words.append(f"--{option if value else negative}")
        elif isinstance(value, list):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", str(value)]
    return words


def need_eval_split(source: Source, split: str | None) -> str:
    """The split that the segmentation network is scored on.

    Raises:
        DataError: if there is none, or it has no mask.
    """
    name = split or ("val" if "val" in source.splits() else None)
    if name is None or not any(record.mask_path for record in source.records(name)):
        raise DataError(
            f"{source.spec}: table5 scores the segmentation network on images that it was not trained on; expected a "
            f"split with masks by --eval-split{'' if name is None else f' ({name} has none)'}"
        )
    return name


def pipeline_of(
    base: TrainConfig, seed: int, eval_split: str, scales: Sequence[float], shorten: Callable[[int], int]
) -> PipelineConfig:
    """The pipeline of one seed: CPN as `base` has it, random walk, DeepLab, each for its recipe's epochs, shortened.

    The walk is the paper's, but with the preset `default` that of `cpn postprocess`.

    Args:
        base: the CAM network's training, its epochs shortened already.
        seed: of everything random.
        eval_split: split to score the segmentation network on.
        scales: of labelling.
        shorten: epochs of a recipe -> epochs to train.
    """
    of_demo = base.data.startswith("demo:")
    walk = list(demo.AFFINITY) if of_demo else []
    segment = list(demo.SEGMENTATION) if of_demo else []
    recipes = {
        "affinity": for_backbone(AFFINITY_RECIPES, base.backbone),
        "segment": for_backbone(SEGMENT_RECIPES, base.backbone),
    }
    shown = {"affinity": demo.epochs_of(demo.AFFINITY), "segment": demo.epochs_of(demo.SEGMENTATION)}
    epochs = shown if of_demo else {name: recipe.epochs for name, recipe in recipes.items()}
    scoring = demo.SEGMENTATION_SCORING if of_demo else ("--crf",)
    return PipelineConfig(
        data=base.data,
        output=base.output / f"pipeline-seed{seed}",
        weights=base.weights,
        backbone=base.backbone,
        method="cpn",
        crop=base.augment.crop,
        seed=seed,
        split=base.split,
        eval_split=eval_split,
        scales=tuple(scales),
        refine="walk",
        train=shlex.join(words_of(base)),
        affinity=shlex.join((*walk, "--epochs", str(shorten(epochs["affinity"])))),
        postprocess="" if base.preset == "default" else shlex.join(PAPER_WALK),
        segmentation=shlex.join((*segment, "--epochs", str(shorten(epochs["segment"])))),
        evaluate=shlex.join(scoring),
    )


def measurements(
    rows: Sequence[Row],
    pipelines: Mapping[int, PipelineConfig],
    column: str,
    run: Pipeline,
) -> Iterator[Measurement]:
    """What each seed's pipeline measured, in %.

    Args:
        rows: of the table `table5`.
        pipelines: by seed.
        column: the table's only column.
        run: runs a pipeline, or what is missing of it.

    Yields:
        One measurement per row and seed.

    Raises:
        DataError: as `run_pipeline` does.
    """
    for seed, config in pipelines.items():
        run(config)
        segmented = read_scores(config.output / "segment" / "metrics.json").get("results", {})
        found: dict[str, Mapping[str, Any]] = {
            CAM_MASKS: read_scores(config.output / "masks" / "metrics.json"),
            WALKED: read_scores(config.output / "masks-refined" / "metrics.json"),
            SEGMENTED: segmented.get(MULTI, {}),
            SEGMENTED_CRF: segmented.get(CRF, {}),
        }
        for row in rows:
            miou = found[row.name].get("miou")
            figure = None if miou is None else 100 * miou
            yield Measurement(row.name, seed, {"": {column: figure}}, "", {"run": config.output.name})
