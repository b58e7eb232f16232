"""Options of `cpn run` and the configs of its stages that they make; free of torch, for a quick --help."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from cpn_fast.affinity import options as affinity_options
from cpn_fast.cam import options as cam_options
from cpn_fast.cam.options import LabelConfig
from cpn_fast.config.export import ExportConfig
from cpn_fast.config.refine import OF_PIXEL_HEAD
from cpn_fast.config.training import AffinityConfig, MethodName, SegmentConfig, TrainConfig, replace_dotted
from cpn_fast.files.errors import DataError
from cpn_fast.pipeline.plan import DEFAULT_SPLIT, MOST_ROUNDS, NOWHERE, PipelineConfig
from cpn_fast.refine.options import RefineConfig
from cpn_fast.segment import options as segment_options
from cpn_fast.segment.options import SegmentEvaluateConfig

T = TypeVar("T")

Refinement = Literal["none", "crf", "walk", "walk+crf"]

OptionsText = Annotated[str, tyro.conf.arg(metavar="OPTIONS")]


@dataclass(frozen=True)
class PipelineOptions:
    """From images with labels to masks and a segmentation model: train, label, refine, segment, score, export, report.

    A stage that is up to date, with the same settings and inputs, is skipped; after a stop, rerun the same command to
    resume. Options of a single stage are given as one text, e.g. `--train "--epochs 20 --lr 0.004"`; `cpn STAGE --help`
    lists them.

    Attributes:
        data: source, e.g. `voc:PATH`, `folder:PATH`, `classes:PATH`, `coco:PATH`, `demo:` or a bare path.
        output: folder of everything that is made.
        weights: backbone weights (.params, .pth, .safetensors), for every network that is trained.
        backbone: of every network that is trained; None = what suits the machine, as for `cpn train`.
        method: how the CAM network is trained; "cam" made better masks than "cpn" in two rounds, in half the time (see
            the docs' study).
        rounds: 2 = first a plain classifier is trained, and the CAM network then learns the pixels too that its maps
            are sure of: about twice the time, and clearly better masks; 3 and 4 = such a network labels pixels for the
            next once more; None = 2 for the methods cam and cpn, unless they learn pixel labels of another origin,
            else 1.
        crop: side of the training crops in pixels; None = what suits the machine.
        seed: of everything random.
        split: split to train on and to label; None = train where the source has it and has masks, else all its images.
        eval_split: split to score the segmentation model on; None = `val` where the source has it.
        scales: scale factors of the image when labelling; None = as `cpn label`.
        refine: what is done to the masks before the segmentation model learns from them: dense CRF, AffinityNet with
            random walk, both, or nothing.
        segment: train the segmentation model.
        train: further options of `cpn train`.
        label: further options of `cpn label`.
        affinity: further options of `cpn train-affinity`.
        refinement: further options of `cpn refine`; until the next version also --postprocess.
        segmentation: further options of `cpn segment train`.
        evaluate: further options of `cpn segment evaluate`.
        export: further options of `cpn export` for the segmentation model.
    """

    data: str
    output: Path
    weights: Path | None = None
    backbone: str | None = None
    method: MethodName = "cam"
    rounds: int | None = None
    crop: int | None = None
    seed: int = 0
    split: str | None = None
    eval_split: str | None = None
    scales: tuple[float, ...] | None = None
    refine: Refinement = "crf"
    segment: bool = True
    train: OptionsText = ""
    label: OptionsText = ""
    affinity: OptionsText = ""
    refinement: Annotated[str, tyro.conf.arg(metavar="OPTIONS", aliases=("--postprocess",))] = ""
    segmentation: OptionsText = ""
    evaluate: OptionsText = ""
    export: OptionsText = ""


TEXTS = tuple(
    f"--{name}"
    for name in ("train", "label", "affinity", "refinement", "postprocess", "segmentation", "evaluate", "export")
)
"""Options whose value is a text of further options."""

DECIDED = ("--data", "--split", "--output", "--masks", "--random-walk", "--resume")
"""Options of stages that follow from the pipeline's own."""


def parse(argv: Sequence[str]) -> PipelineConfig:
    """The configs of all stages from the command line, where the text of a stage's options may begin with a dash.

    Args:
        argv: arguments without the program's name.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: for a stage's option that the pipeline decides on, or an unfinished quotation.
    """
    given: list[str] = []
    for word in argv:
        if given and given[-1] in TEXTS:
            given[-1] += f"={word}"  # a word of its own that begins with a dash would be taken for an option
        else:
            given.append(word)
    return pipeline_of(tyro.cli(PipelineOptions, args=given, prog="cpn run"))


def pipeline_of(options: PipelineOptions) -> PipelineConfig:
    """The configs of the stages that the options ask for. Raises as `parse` does."""

    def train(config: TrainConfig) -> TrainConfig:
        split = options.split or DEFAULT_SPLIT
        config = replace(config, data=options.data, split=split, output=NOWHERE, method=options.method)
        return replace_dotted(config, {"seed": options.seed})

    training = cam_options.parse(_training_words(options, options.train, "--train"), train)
    label = LabelConfig(NOWHERE, "", NOWHERE, scales=options.scales)
    evaluate, export = SegmentEvaluateConfig(NOWHERE, ""), ExportConfig(NOWHERE, NOWHERE)
    label, rounds = _parsed(label, options.label, "--label", "label"), _rounds(options, training)
    if label.pairs and rounds > 1 and label.refine in (None, *OF_PIXEL_HEAD):
        raise DataError(
            f"--label {options.label!r}: --pairs is for class activation maps, and the last of {rounds} rounds makes "
            "its masks of the maps of its pixel head; leave it out, or take --rounds 1"
        )
    return PipelineConfig(
        output=options.output,
        train=training,
        label=label,
        affinity=_affinity(options) if "walk" in options.refine else None,
        refine=_refine(options) if options.refine != "none" else None,
        segment=_segment(options) if options.segment else None,
        evaluate=_parsed(evaluate, options.evaluate, "--evaluate", "segment evaluate"),
        export=_parsed(export, options.export, "--export", "export"),
        eval_split=options.eval_split,
        rounds=rounds,
    )


def _rounds(options: PipelineOptions, training: TrainConfig) -> int:
    """How many rounds there are. Raises DataError for a number out of range, or several that don't fit the training."""
    several = options.method in ("cam", "cpn")
    if options.rounds is None:
        return 2 if several and not training.learns_pixels else 1
    if not 1 <= options.rounds <= MOST_ROUNDS:
        raise DataError(f"--rounds {options.rounds}: expected 1 to {MOST_ROUNDS}")
    if options.rounds > 1 and not several:
        raise DataError(f"--rounds {options.rounds} is for the methods cam and cpn, found --method {options.method}")
    if options.rounds > 1 and training.learns_pixels:
        raise DataError(
            f"--rounds {options.rounds} makes the pixel labels itself, found --train {options.train!r}: leave out its "
            "--pixel-masks or --options.teacher, or take --rounds 1"
        )
    return options.rounds


def _affinity(options: PipelineOptions) -> AffinityConfig:
    def recipe(config: AffinityConfig) -> AffinityConfig:
        return replace_dotted(replace(config, masks=NOWHERE, output=NOWHERE), {"seed": options.seed})

    return affinity_options.parse(_training_words(options, options.affinity, "--affinity"), recipe)


def _refine(options: PipelineOptions) -> RefineConfig:
    default = RefineConfig(NOWHERE, NOWHERE, crf="crf" in options.refine)
    return _parsed(default, options.refinement, "--refinement", "refine")


def _segment(options: PipelineOptions) -> SegmentConfig:
    def recipe(config: SegmentConfig) -> SegmentConfig:
        return replace_dotted(replace(config, data="", masks="", output=NOWHERE), {"seed": options.seed})

    return segment_options.parse(_training_words(options, options.segmentation, "--segmentation"), recipe)


def _training_words(options: PipelineOptions, text: str, option: str) -> list[str]:
    """A training's options, and before them those of the pipeline that its parser has to know to choose what suits."""
    shared = {"--backbone": options.backbone, "--weights": options.weights, "--crop": options.crop}
    given = [word for name, value in shared.items() if value is not None for word in (name, str(value))]
    return [*given, *_words(text, option)]


def _parsed(default: T, text: str, option: str, command: str) -> T:
    """A stage's config: the default, changed by the text of further options."""
    return tyro.cli(type(default), args=_words(text, option), default=default, prog=f"cpn {command}")


def _words(text: str, option: str) -> list[str]:
    """An option's text as words. Raises DataError for an unfinished quotation, or an option that isn't a stage's."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise DataError(f"{option} {text!r}: {error}; expected options as on a command line") from error
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if name in DECIDED and (option, name) != ("--refinement", "--data"):  # images that have moved since
            raise DataError(f"{option} {text!r}: {name} follows from the pipeline's own options; leave it out")
    return words
