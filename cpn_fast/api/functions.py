"""The functions of the public API. Free of torch until one of them needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpn_fast.api.errors import in_python_words
from cpn_fast.api.model import Model, shown
from cpn_fast.api.run import Run
from cpn_fast.config.backbones import BACKBONE_NAMES, trust_backbone
from cpn_fast.config.training import (
    AffinityConfig,
    MethodName,
    MethodOptions,
    SegmentConfig,
    TrainConfig,
    TrainingConfig,
)
from cpn_fast.data.sources.open import open_source, open_source_for
from cpn_fast.data.types import Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import JobSummary
from cpn_fast.files.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from cpn_fast.models.cam import CamNet

LOADERS = "cpn_fast.loaders"
"""Entry points by the suffix of a file: functions that take its path and return a `Model`."""


def list_backbones() -> list[str]:
    """The names of this package's backbones. `timm:NAME` and `package.module:function` name others."""
    return list(BACKBONE_NAMES)


def create_model(
    method: MethodName = "cpn",
    *,
    backbone: str | nn.Module = "resnet38",
    num_classes: int,
    weights: str | Path | None = None,
    options: MethodOptions | None = None,
) -> CamNet:
    """An untrained CAM network: backbone, classifier and the refinement heads of a method.

    Args:
        method: "cam", "seam", "seam_prcm" or "cpn".
        backbone: a name, see `list_backbones`; or a module whose forward gives a list of maps and that has
            `feature_info`, such as `timm.create_model(..., features_only=True)`. Its batch norms are frozen.
        num_classes: K foreground classes.
        weights: file of backbone weights; None = as initialised, those of timm as timm fetches them, a module as it is.
        options: readings of the method; None = the usual ones.

    Returns:
        A module: `net(views)` of float [M, 3, H, W] gives `cam` [M, K, h, w], `scores` [M, K] and `features`.

    Raises:
        DataError: for an unknown backbone, a module that cannot be one, or weights that do not fit it.
    """
    from cpn_fast.models.backbones import Backbone, FeatureBackbone, create_backbone
    from cpn_fast.models.build import cam_net
    from cpn_fast.models.weights.pretrained import load_backbone_weights

    if num_classes < 1:
        raise DataError(f"num_classes is {num_classes}, expected at least 1 foreground class")
    if isinstance(backbone, str):
        body = create_backbone(backbone, pretrained=weights is None)
    else:
        body = backbone if isinstance(backbone, Backbone) else FeatureBackbone(backbone)
    if weights is not None:
        load_backbone_weights(body, weights)
    config = TrainConfig(data="", output=Path(), method=method, options=options or MethodOptions())
    return cam_net(body, config, num_classes)


def train(config: TrainingConfig, progress: Progress | bool = False) -> Run:
    """Train a network.

    Args:
        config: `TrainConfig` (a CAM network), `AffinityConfig` or `SegmentConfig`.
        progress: True shows the training on the terminal.

    Returns:
        The run.

    Raises:
        DataError: if data, weights or settings do not fit, or the folder holds a run and `resume` is off.
        NonFiniteError: if a loss or gradient was not finite.
    """
    trainer = _trainer(config)
    trust_backbone(config.backbone)
    config = dataclasses.replace(
        config,
        data=str(config.data),
        output=Path(config.output),
        weights=None if config.weights is None else Path(config.weights),
    )
    with in_python_words():
        return Run(trainer(config, shown(progress)).path)


def _trainer(config: TrainingConfig) -> Callable[[Any, Progress], Any]:
    if isinstance(config, TrainConfig):
        from cpn_fast.cam.task import run_train

        return run_train
    if isinstance(config, SegmentConfig):
        from cpn_fast.segment.task import run_segment_train

        return run_segment_train
    if isinstance(config, AffinityConfig):
        from cpn_fast.affinity.command import run_affinity

        return run_affinity
    raise DataError(f"{type(config).__name__}: expected a TrainConfig, AffinityConfig or SegmentConfig")


def load(path: str | Path) -> Model:
    """A trained model: a run folder, or an exported file such as `model.onnx`, which needs no torch.

    Raises:
        DataError: if there is no run or file, or no loader for files of its kind is installed.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return Run(path)
    loaders = {point.name: point for point in entry_points(group=LOADERS)}
    kind = path.suffix.removeprefix(".").lower()
    if kind not in loaders:
        known = ", ".join(f".{name}" for name in sorted(loaders)) or "none: install cpn-fast again"
        raise DataError(f"{path}: expected a run folder or a file that can be loaded ({known})")
    with in_python_words():
        return loaders[kind].load()(path)


def label(
    model: Model | str | Path,
    source: Source | str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> JobSummary:
    """Write the masks of a split in VOC layout; what is there is skipped, so an interrupted labelling resumes.

    Args:
        model: from `load` or `train`, or what `load` takes.
        source: from `open_source`, or what it takes.
        output: folder for SegmentationClass/ID.png, labelmap.txt and manifest.jsonl.
        split: which of the source's; None = train where it has it, else all.
        progress: True shows a bar on the terminal.
        options: settings of that labelling, e.g. `scales`, `beta`, `soft_maps`, `batch_size`; see `cpn label --help`,
            of a segmentation network `cpn segment predict --help`.

    Returns:
        How many images were written, skipped and failed.

    Raises:
        DataError: for a model, source or option that does not fit, or if no image at all could be read.
    """
    loaded = load(model) if isinstance(model, str | Path) else model
    with in_python_words():
        opened = open_source_for(source, loaded.classes) if isinstance(source, str | Path) else source
        return loaded.label(opened, Path(output), split, shown(progress), **options)


@dataclass(frozen=True)
class Scores:
    """How well masks agree with ground truth; all values in 0..1.

    Attributes:
        miou: mean IoU over background and classes; None where nothing could be counted.
        background: IoU of the background.
        foreground: mean IoU of the classes.
        per_class: IoU by name, background among them; None for a class that occurs nowhere.
        images: how many were scored.
        beta: of a CAM network's run, the background score at which these values are reached; None for masks.
        values: all that metrics.json holds.
    """

    miou: float | None
    background: float | None
    foreground: float | None
    per_class: Mapping[str, float | None]
    images: int
    beta: float | None
    values: Mapping[str, Any]


def evaluate(
    target: Run | str | Path,
    source: Source | str | Path,
    *,
    split: str | None = None,
    output: str | Path | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> Scores:
    """Score a folder of masks, or a run, against ground truth; metrics.json is written too.

    Args:
        target: a folder of masks, or a run. For a run of a CAM network the best background score is found, which
            labelling takes from then on.
        source: with masks; from `open_source`, or what it takes.
        split: which of the source's; None = train where it has it, else all.
        output: folder for metrics.json; None = the target.
        progress: True shows bar and tables on the terminal.
        options: other settings, e.g. `images`, `allow_missing`, `scales`; see `cpn evaluate --help`.

    Raises:
        DataError: for a target or source that does not fit, or images without any ground truth.
    """
    opened = open_source(source) if isinstance(source, str | Path) else source
    path = target.path if isinstance(target, Run) else Path(target)
    place = None if output is None else Path(output)
    with in_python_words():
        values = _score(path, opened, split, place, shown(progress), options)
    names = ("miou", "background", "foreground", "per_class", "images")
    return Scores(**{name: values[name] for name in names}, beta=values.get("beta"), values=values)


def _score(
    path: Path, source: Source, split: str | None, output: Path | None, progress: Progress, options: dict[str, Any]
) -> dict[str, Any]:
    from cpn_fast.runs.folder import RunFolder

    run = RunFolder(path)
    if run.exists() and run.task == "segment":
        from cpn_fast.data.sources.spread import records_of
        from cpn_fast.segment.evaluate import run_segment_evaluate
        from cpn_fast.segment.options import SegmentEvaluateConfig

        chosen, _ = records_of(source, split)
        config = SegmentEvaluateConfig(run=path, data=source.spec, split=chosen, output=output, **options)
        return run_segment_evaluate(config, progress)
    from cpn_fast.scoring.command import run_evaluate
    from cpn_fast.scoring.options import EvaluateConfig

    return run_evaluate(EvaluateConfig(path, source.spec, split=split, output=output, **options), progress)
