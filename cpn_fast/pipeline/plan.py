"""Which stages a pipeline has, as the commands that a person would type, and what each one reads and writes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import MethodName
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import FREE_ON_RESUME

Refinement = Literal["none", "crf", "walk", "walk+crf"]

FREE = (FREE_ON_RESUME - {"max_steps"}) | {"overwrite", "device", "sheet"}
"""Options of the commands that change nothing in what they write."""


@dataclass(frozen=True)
class PipelineConfig:
    """From images with labels to masks and a segmentation model: train, label, refine, segment, score, export, report.

    A stage whose outputs are there and whose settings and inputs are the same is skipped; the same command goes on
    after a stop. Options of a single stage are given as one text, e.g. `--train "--epochs 20 --lr 0.004"`; `cpn STAGE
    --help` lists them.

    Attributes:
        data: source, e.g. `voc:PATH`, `folder:PATH`, `classes:PATH`, `coco:PATH`, `demo:` or a bare path.
        output: folder of everything that is made.
        weights: backbone weights (.params, .pth, .safetensors), for every network that is trained.
        backbone: of every network that is trained.
        method: how the CAM network is trained.
        crop: side of the training crops in pixels.
        seed: of everything random.
        split: split to train on and to label.
        eval_split: split to score the segmentation model on; None = `val` where the source has it.
        scales: scale factors when labelling.
        refine: what is done to the masks before the segmentation model learns from them: dense CRF, AffinityNet with
            random walk, both, or nothing.
        segment: train the segmentation model.
        train: further options of `cpn train`.
        label: further options of `cpn label`.
        affinity: further options of `cpn affinity`.
        postprocess: further options of `cpn postprocess`.
        segmentation: further options of `cpn segment train`.
        evaluate: further options of `cpn segment evaluate`.
        export: further options of `cpn export` for the segmentation model.
    """

    data: str
    output: Path
    weights: Path | None = None
    backbone: str = "resnet38"
    method: MethodName = "cpn"
    crop: int = 448
    seed: int = 0
    split: str = "train"
    eval_split: str | None = None
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    refine: Refinement = "crf"
    segment: bool = True
    train: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    label: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    affinity: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    postprocess: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    segmentation: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    evaluate: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    export: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""


TEXTS = tuple(
    f"--{name}" for name in ("train", "label", "affinity", "postprocess", "segmentation", "evaluate", "export")
)
"""Options whose value is a text of further options."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: in the terminal, the report and the state folder.
        argv: the command behind `cpn`.
        owns: what is set aside when the stage has to begin anew; None = it overwrites its own file.
        outputs: what tells whether it is complete.
        needs: stages whose outputs it reads.
        reads: splits of the source that it reads.
        truth: it reads their ground truth too.
        resumes: give `--resume` where it was begun (the others find out by themselves).
        manifest: folder of masks whose manifest says which images failed.
        scores: the metrics.json that it writes.
    """

    name: str
    argv: tuple[str, ...]
    outputs: tuple[Path, ...]
    owns: Path | None = None
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    truth: bool = False
    resumes: bool = False
    manifest: Path | None = None
    scores: Path | None = None


def parse(argv: Sequence[str]) -> PipelineConfig:
    """Settings from the command line, where the text of a stage's options may begin with a dash.

    Args:
        argv: arguments without the program's name.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
    """
    given: list[str] = []
    for word in argv:
        if given and given[-1] in TEXTS:
            given[-1] += f"={word}"  # a word of its own that begins with a dash would be taken for an option
        else:
            given.append(word)
    return tyro.cli(PipelineConfig, args=given, prog="cpn run")


def further(text: str, option: str) -> tuple[str, ...]:
    """Split an option's text into words. Raises DataError for an unfinished quotation."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise DataError(f"{option} {text!r}: {error}; expected options as on a command line") from error


def settings_of(parsed: Any, output: Path) -> dict[str, Any]:
    """The settings of a command that decide what it writes.

    Args:
        parsed: the command's config.
        output: the pipeline's folder; paths in it are given relative to it, so that it may be moved. Not so the
            weights: their content decides, so that file is still to be opened.

    Returns:
        JSON-able values by dotted name.
    """

    def moved(name: str, value: Any) -> Any:
        inside = name != "weights" and isinstance(value, str) and Path(value).is_relative_to(output)
        return str(Path(value).relative_to(output)) if inside else value

    return {name: moved(name, value) for name, value in flat(config_to_dict(parsed)).items() if name not in FREE}


def plan(config: PipelineConfig, eval_split: str | None, truth: bool) -> list[Stage]:
    """The stages in order.

    Args:
        config: the settings.
        eval_split: split to score the segmentation model on; None = it cannot be scored.
        truth: the training split has ground truth, so masks are scored and the background score is chosen by it.
    """
    stages = _cam_stages(config, truth)
    masks = "label"
    if config.refine != "none":
        stages += _refining_stages(config, truth)
        masks = "postprocess"
    if config.segment:
        stages += _segmentation_stages(config, masks, eval_split)
    return stages


def _cam_stages(config: PipelineConfig, truth: bool) -> list[Stage]:
    out, data, scales = config.output, ("--data", config.data), ("--scales", *map(str, config.scales))
    run, masks, onnx = out / "train", out / "masks", out / "labeller.onnx"
    scored, where = run / "metrics.json", (*data, "--split", config.split)
    options = ("--method", config.method, *_network(config), *further(config.train, "--train"))
    chosen = ("train", "score") if truth else ("train",)
    train = Stage(
        "train",
        ("train", *where, "--output", str(run), *options),
        (run / "model.safetensors",),
        owns=run,
        reads=(config.split,),
        resumes=True,
    )
    score = Stage(
        "score",
        ("evaluate", str(run), *where, *scales),
        (scored,),
        needs=("train",),
        reads=(config.split,),
        truth=True,
        scores=scored,
    )
    label = Stage(
        "label",
        ("label", str(run), *where, *scales, "--soft-maps", "--output", str(masks), *further(config.label, "--label")),
        (masks / "SegmentationClass", masks / "SoftMaps"),
        owns=masks,
        needs=chosen,
        reads=(config.split,),
        manifest=masks,
    )
    export = Stage("export labeller", ("export", str(run), "--output", str(onnx), *scales), (onnx,), needs=chosen)
    if not truth:
        return [train, label, export]
    return [train, score, label, _score_masks("score masks", "label", config), export]


def _score_masks(name: str, stage: str, config: PipelineConfig) -> Stage:
    masks = config.output / {"label": "masks", "postprocess": "masks-refined"}[stage]
    argv = ("evaluate", str(masks), "--data", config.data, "--split", config.split)
    scored = masks / "metrics.json"
    return Stage(name, argv, (scored,), needs=(stage,), reads=(config.split,), truth=True, scores=scored)


def _refining_stages(config: PipelineConfig, truth: bool) -> list[Stage]:
    out, masks, refined = config.output, config.output / "masks", config.output / "masks-refined"
    stages: list[Stage] = []
    how: tuple[str, ...] = ("--crf",) if "crf" in config.refine else ()
    needs: tuple[str, ...] = ("label",)
    if "walk" in config.refine:
        run = out / "affinity"
        options = (*_network(config), *further(config.affinity, "--affinity"))
        affinity = Stage(
            "affinity",
            ("affinity", str(masks), "--output", str(run), "--data", config.data, *options),
            (run / "model.safetensors",),
            owns=run,
            needs=("label",),
            reads=(config.split,),
            resumes=True,
        )
        stages.append(affinity)
        how, needs = ("--random-walk", str(run), *how), ("label", "affinity")
    options = further(config.postprocess, "--postprocess")
    postprocess = Stage(
        "postprocess",
        ("postprocess", str(masks), *how, "--output", str(refined), *options),
        (refined / "SegmentationClass",),
        owns=refined,
        needs=needs,
        reads=(config.split,),
        manifest=refined,
    )
    stages.append(postprocess)
    return [*stages, _score_masks("score refined masks", "postprocess", config)] if truth else stages


def _segmentation_stages(config: PipelineConfig, masks: str, eval_split: str | None) -> list[Stage]:
    out, data = config.output, ("--data", config.data)
    run, folder = out / "segment", out / ("masks" if masks == "label" else "masks-refined")
    onnx, scored = out / "segment.onnx", run / "metrics.json"
    options = (*_network(config), *further(config.segmentation, "--segmentation"))
    train = Stage(
        "segment",
        ("segment", "train", *data, "--split", config.split, "--masks", str(folder), "--output", str(run), *options),
        (run / "model.safetensors",),
        owns=run,
        needs=(masks,),
        reads=(config.split,),
        resumes=True,
    )
    argv = ("export", str(run), "--output", str(onnx), *further(config.export, "--export"))
    export = Stage("export", argv, (onnx,), needs=("segment",))
    if eval_split is None:
        return [train, export]
    options = further(config.evaluate, "--evaluate")
    evaluate = Stage(
        "evaluate",
        ("segment", "evaluate", str(run), *data, "--split", eval_split, *options),
        (scored,),
        needs=("segment",),
        reads=(eval_split,),
        truth=True,
        scores=scored,
    )
    return [train, evaluate, export]


def _network(config: PipelineConfig) -> Sequence[str]:
    weights = () if config.weights is None else ("--weights", str(config.weights))
    return ("--backbone", config.backbone, *weights, "--augment.crop", str(config.crop), "--seed", str(config.seed))
