"""Which stages a pipeline has, as a command and its config each, and what each one reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cpn_fast.cam.map_options import MapOptions
from cpn_fast.cam.options import LabelConfig
from cpn_fast.config.display import command_text
from cpn_fast.config.export import ExportConfig
from cpn_fast.config.refine import OF_PIXEL_HEAD
from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import AffinityConfig, SegmentConfig, TrainConfig, replace_dotted
from cpn_fast.refine.options import RefineConfig
from cpn_fast.runs.folder import FREE_ON_RESUME
from cpn_fast.scoring.options import EvaluateConfig
from cpn_fast.segment.options import SegmentEvaluateConfig

FREE = (FREE_ON_RESUME - {"max_steps"}) | {
    *("overwrite", "device", "sheet", "allow_failures", "engine", "ray_address", "workers_per_node")
}
"""Options of the commands that change nothing in what they write."""

MAP_OPTIONS = tuple(option.name for option in fields(MapOptions))
"""Options of `cpn label` that decide how maps are made."""

EARLIER = ("first", "second", "third")
"""The rounds before the last, as their stages and folders are called."""

MOST_ROUNDS = len(EARLIER) + 1

CERTAIN_MARGIN = (0.15, 0.1)
"""How far below the background score a round takes a pixel for background, and above it for its class: below 0.3 and
above 0.55 where the score is that of refined maps without ground truth."""

NOWHERE = Path()
"""Stands for a folder or file in a stage's config that the pipeline puts in its place."""

DEFAULT_SPLIT = ""
"""Stands for the split that `default_split` gives once the source is open."""


@dataclass(frozen=True)
class PipelineConfig:
    """A pipeline as the configs of its stages; what they read of each other, and where they write, is set by `plan`.

    Attributes:
        output: folder of everything that is made.
        train: the CAM network; its `data` and `split` are what is trained on and labelled; `DEFAULT_SPLIT` = what the
            source has.
        label: its masks; the run is scored and exported with the same maps.
        affinity: AffinityNet for the random walk; None = no walk.
        refine: what is done to the masks; None = nothing.
        segment: the segmentation network; None = none.
        evaluate: its scores.
        export: its ONNX model.
        eval_split: split to score it on; None = `val` where the source has it.
        rounds: trainings of the CAM network, 1 to `MOST_ROUNDS`. Before `train` come rounds - 1 plain classifiers, each
            of which labels the pixels that its maps are sure of, which the next one then learns from.
    """

    output: Path
    train: TrainConfig
    label: LabelConfig = field(default_factory=lambda: LabelConfig(NOWHERE, "", NOWHERE))
    affinity: AffinityConfig | None = None
    refine: RefineConfig | None = field(default_factory=lambda: RefineConfig(NOWHERE, NOWHERE, crf=True))
    segment: SegmentConfig | None = None
    evaluate: SegmentEvaluateConfig = field(default_factory=lambda: SegmentEvaluateConfig(NOWHERE, ""))
    export: ExportConfig = field(default_factory=lambda: ExportConfig(NOWHERE, NOWHERE))
    eval_split: str | None = None
    rounds: int = 1


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: in the terminal, the report and the state folder.
        command: behind `cpn`, e.g. "segment train".
        config: what the command runs with.
        outputs: what tells whether it is complete.
        owns: what is set aside when the stage has to begin anew; None = it overwrites its own file.
        needs: stages whose outputs it reads.
        reads: splits of the source that it reads.
        truth: it reads their ground truth too.
        resumes: has to be asked to resume where it was begun (the others find out by themselves).
        manifest: folder of masks whose manifest says which images failed.
        scores: the metrics.json that it writes.
    """

    name: str
    command: str
    config: Any
    outputs: tuple[Path, ...]
    owns: Path | None = None
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    truth: bool = False
    resumes: bool = False
    manifest: Path | None = None
    scores: Path | None = None

    @property
    def text(self) -> str:
        """The command that a person would type."""
        return command_text(self.command, self.config)


def settings_of(config: Any, output: Path) -> dict[str, Any]:
    """The settings of a command that decide what it writes.

    Args:
        config: the command's.
        output: the pipeline's folder; paths in it are given relative to it, so that it may be moved. Not so the
            weights: their content decides, so that file is still to be opened.

    Returns:
        JSON-able values by dotted name.
    """

    def moved(name: str, value: Any) -> Any:
        inside = name != "weights" and isinstance(value, str) and Path(value).is_relative_to(output)
        return str(Path(value).relative_to(output)) if inside else value

    return {name: moved(name, value) for name, value in flat(config_to_dict(config)).items() if name not in FREE}


def plan(config: PipelineConfig, eval_split: str | None, truth: bool) -> list[Stage]:
    """The stages in order.

    Args:
        config: the settings.
        eval_split: split to score the segmentation model on; None = it cannot be scored.
        truth: the training split has ground truth, so masks are scored and the background score is chosen by it.
    """
    stages = _cam_stages(config, truth)
    masks = "label"
    if config.refine is not None:
        stages += _refining_stages(config, config.refine, truth)
        masks = "refine"
    if config.segment is not None:
        stages += _segmentation_stages(config, config.segment, masks, eval_split)
    return stages


def _cam_stages(config: PipelineConfig, truth: bool) -> list[Stage]:
    out, data, split = config.output, config.train.data, config.train.split
    run, masks, onnx = out / "train", out / "masks", out / "labeller.onnx"
    earlier, pixels = _earlier_rounds(config)
    scored, maps = run / "metrics.json", {name: getattr(config.label, name) for name in MAP_OPTIONS}
    chosen = ("train", "score") if truth else ("train",)
    train = Stage(
        "train",
        "train",
        replace(replace_dotted(config.train, {"resume": False}), output=run, pixel_masks=pixels),
        (run / "model.safetensors",),
        owns=run,
        needs=_labelled_by(earlier),
        reads=(split,),
        resumes=True,
    )
    score = Stage(
        "score",
        "evaluate",
        EvaluateConfig(run, data, split=split, **maps),
        (scored,),
        needs=("train",),
        reads=(split,),
        truth=True,
        scores=scored,
    )
    label = Stage(
        "label",
        "label",
        replace(config.label, run=run, data=data, split=split, soft_maps=True, output=masks),
        (masks / "SegmentationClass", masks / "SoftMaps"),
        owns=masks,
        needs=chosen,
        reads=(split,),
        manifest=masks,
    )
    # Without ground truth it is the labelling that finds the background score of a pixel head.
    found = chosen if truth or pixels is None else ("label",)
    export = Stage("export labeller", "export", ExportConfig(run, onnx, **maps), (onnx,), needs=found)
    if not truth:
        return [*earlier, train, label, export]
    return [*earlier, train, score, label, _score_masks("score masks", "label", config), export]


def _earlier_rounds(config: PipelineConfig) -> tuple[list[Stage], Path | None]:
    """The stages of the rounds before the last, and the folder of the pixel labels that this learns; None = no such.

    A round is a plain classifier, the cheapest of the methods, from the same weights as every other, and the pixels
    that its maps are sure of: after PCM in the first, those of the pixel head in the others.
    """
    stages: list[Stage] = []
    pixels = None
    for name in EARLIER[: config.rounds - 1]:
        train, label = _round(config, name, pixels, _labelled_by(stages))
        stages += [train, label]
        pixels = label.config.output
    return stages, pixels


def _labelled_by(earlier: list[Stage]) -> tuple[str, ...]:
    """The stage whose masks the training after these rounds learns; none after none."""
    return tuple(stage.name for stage in earlier[-1:])


def _round(config: PipelineConfig, name: str, pixels: Path | None, needs: tuple[str, ...]) -> tuple[Stage, Stage]:
    """A round that only labels pixels for the next."""
    out, data, split = config.output, config.train.data, config.train.split
    run, masks = out / name, out / f"{name}-masks"
    plain = replace(config.train, method="cam", pixel_masks=pixels, output=run)
    refine = None if pixels is None and config.label.refine in OF_PIXEL_HEAD else config.label.refine
    labelling = replace(
        config.label, run=run, data=data, split=split, output=masks, refine=refine, soft_maps=False,
        beta=None, void_band=None, void_margin=CERTAIN_MARGIN,
    )  # fmt: skip
    train = Stage(
        f"{name} train",
        "train",
        replace_dotted(plain, {"resume": False}),
        (run / "model.safetensors",),
        owns=run,
        needs=needs,
        reads=(split,),
        resumes=True,
    )
    label = Stage(
        f"{name} label",
        "label",
        labelling,
        (masks / "SegmentationClass",),
        owns=masks,
        needs=(train.name,),
        reads=(split,),
        manifest=masks,
    )
    return train, label


def _score_masks(name: str, stage: str, config: PipelineConfig) -> Stage:
    masks = config.output / {"label": "masks", "refine": "masks-refined"}[stage]
    split, scored = config.train.split, masks / "metrics.json"
    evaluation = EvaluateConfig(masks, config.train.data, split=split)
    return Stage(name, "evaluate", evaluation, (scored,), needs=(stage,), reads=(split,), truth=True, scores=scored)


def _refining_stages(config: PipelineConfig, refine: RefineConfig, truth: bool) -> list[Stage]:
    out, split = config.output, config.train.split
    masks, refined = out / "masks", out / "masks-refined"
    stages: list[Stage] = []
    needs: tuple[str, ...] = ("label",)
    walk = None
    if config.affinity is not None:
        walk, needs = out / "affinity", ("label", "affinity")
        affinity = Stage(
            "affinity",
            "train-affinity",
            replace(
                replace_dotted(config.affinity, {"resume": False}), masks=masks, output=walk, data=config.train.data
            ),
            (walk / "model.safetensors",),
            owns=walk,
            needs=("label",),
            reads=(split,),
            resumes=True,
        )
        stages.append(affinity)
    refinement = Stage(
        "refine",
        "refine",
        replace(refine, masks=masks, output=refined, random_walk=walk),
        (refined / "SegmentationClass",),
        owns=refined,
        needs=needs,
        reads=(split,),
        manifest=refined,
    )
    stages.append(refinement)
    return [*stages, _score_masks("score refined masks", "refine", config)] if truth else stages


def _segmentation_stages(
    config: PipelineConfig, segment: SegmentConfig, masks: str, eval_split: str | None
) -> list[Stage]:
    out, data, split = config.output, config.train.data, config.train.split
    run, folder = out / "segment", out / ("masks" if masks == "label" else "masks-refined")
    onnx, scored = out / "segment.onnx", run / "metrics.json"
    train = Stage(
        "segment",
        "segment train",
        replace(replace_dotted(segment, {"resume": False}), data=data, split=split, masks=str(folder), output=run),
        (run / "model.safetensors",),
        owns=run,
        needs=(masks,),
        reads=(split,),
        resumes=True,
    )
    export = Stage("export", "export", replace(config.export, run=run, output=onnx), (onnx,), needs=("segment",))
    if eval_split is None:
        return [train, export]
    evaluate = Stage(
        "evaluate",
        "segment evaluate",
        replace(config.evaluate, run=run, data=data, split=eval_split),
        (scored,),
        needs=("segment",),
        reads=(eval_split,),
        truth=True,
        scores=scored,
    )
    return [train, evaluate, export]
