"""The final table: one whole pipeline per seed, and what its stages measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpn_fast.cam.options import LabelConfig
from cpn_fast.config.demo import SEGMENT_SCALES as DEMO_SCALES
from cpn_fast.config.demo import affinity_recipe, segment_recipe
from cpn_fast.config.display import changed_settings
from cpn_fast.config.recipes import recipe_of
from cpn_fast.config.training import AffinityConfig, C, SegmentConfig, TrainConfig, replace_dotted
from cpn_fast.data.types import Source
from cpn_fast.files.errors import DataError
from cpn_fast.pipeline.plan import NOWHERE, PipelineConfig
from cpn_fast.refine.options import RefineConfig
from cpn_fast.report.command import read_scores
from cpn_fast.reproduce.summary import Measurement
from cpn_fast.reproduce.tables import CAM_MASKS, SEGMENTED, SEGMENTED_CRF, WALKED, Row
from cpn_fast.segment.evaluate import CRF, MULTI
from cpn_fast.segment.options import SegmentEvaluateConfig

PAPER_STEPS, PAPER_POWER = 64, 8
"""Of the paper's random walk."""

SHARED = ("run", "masks", "data", "output", "split", "backbone", "weights", "seed")
"""Settings of stages that a table tells once, or that say where it lies."""

Pipeline = Callable[[PipelineConfig], Path]


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

    The walk is the paper's, but with the preset `default` that of `cpn refine`.

    Args:
        base: the CAM network's training, its epochs shortened already.
        seed: of everything random.
        eval_split: split to score the segmentation network on.
        scales: of labelling.
        shorten: epochs of a recipe -> epochs to train.
    """
    affinity = AffinityConfig(masks=NOWHERE, output=NOWHERE)
    segment = SegmentConfig(base.data, NOWHERE, masks="")
    evaluate = SegmentEvaluateConfig(NOWHERE, "", crf=True)
    if base.data.startswith("demo:"):
        affinity, segment = affinity_recipe(affinity), segment_recipe(segment)
        evaluate = replace(evaluate, scales=DEMO_SCALES)
    refine = RefineConfig(NOWHERE, NOWHERE)
    if base.preset != "default":
        refine = replace(refine, steps=PAPER_STEPS, power=PAPER_POWER)
    return PipelineConfig(
        output=base.output / f"pipeline-seed{seed}",
        # The preset's options are in the base already, one by one.
        train=replace_dotted(base, {"method": "cpn", "preset": "default", "seed": seed}),
        label=LabelConfig(NOWHERE, "", NOWHERE, scales=tuple(scales)),
        affinity=_shortened(affinity, base, seed, shorten),
        refine=refine,
        segment=_shortened(segment, base, seed, shorten),
        evaluate=evaluate,
        eval_split=eval_split,
    )


def _shortened(config: C, base: TrainConfig, seed: int, shorten: Callable[[int], int]) -> C:
    """A training with the base's network, crops of its size, and a share of its recipe's epochs."""
    augment = replace(config.augment, crop=base.augment.crop)
    config = replace(config, backbone=base.backbone, weights=base.weights, augment=augment)
    epochs = shorten(config.loop.epochs or recipe_of(config).epochs)
    return replace_dotted(config, {"seed": seed, "epochs": epochs})


def settings_of_stages(config: PipelineConfig) -> dict[str, dict[str, Any]]:
    """Of each stage that a seed's pipeline shares with the others' the settings that differ from their defaults."""
    stages = {name: getattr(config, name) for name in ("train", "affinity", "refine", "segment", "evaluate")}
    return {
        name: {key: value for key, value in changed_settings(stage).items() if key not in SHARED}
        for name, stage in stages.items()
        if stage is not None
    }


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
