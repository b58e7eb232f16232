"""`cpn demo`: the whole pipeline on generated images, shown as the commands that a person would type."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cpn_fast.cam.options import LabelConfig
from cpn_fast.config.demo import SCALES, SEGMENT_SCALES, affinity_recipe, cam_recipe, segment_recipe
from cpn_fast.config.display import command_text
from cpn_fast.config.export import ExportConfig
from cpn_fast.config.training import AffinityConfig, MethodName, SegmentConfig, TrainConfig, replace_dotted
from cpn_fast.console.commands import RunCommand
from cpn_fast.demo.options import DemoConfig
from cpn_fast.demo.pretrain import PretrainSettings, pretrain_backbone
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_mask
from cpn_fast.files.regular import read_regular
from cpn_fast.pipeline.command import run_pipeline
from cpn_fast.pipeline.plan import NOWHERE, PipelineConfig
from cpn_fast.refine.options import RefineConfig
from cpn_fast.report.options import ReportConfig
from cpn_fast.scoring.options import EvaluateConfig
from cpn_fast.segment.options import SegmentEvaluateConfig

log = logging.getLogger(__name__)

METHODS: tuple[MethodName, ...] = ("cam", "cpn")
PRETRAIN = PretrainSettings()
LEAST_ACCURACY = 0.8
"""Of the pretrained backbone; with less it knows too little for a comparison of methods to mean anything."""
LEAST_F1 = 0.9
"""What `cam`'s image labels should reach on val; with less the demo says that its figures are worth little."""


@dataclass
class _Demo:
    """What one run of the demo has measured so far."""

    config: DemoConfig
    run_command: RunCommand
    seconds: dict[str, float] = field(default_factory=dict)
    miou: dict[str, list[float]] = field(default_factory=lambda: {method: [] for method in METHODS})
    f1: dict[str, list[float]] = field(default_factory=lambda: {method: [] for method in METHODS})
    console: Console = field(default_factory=lambda: Console(stderr=True))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent within to `seconds[name]`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 1)

    def call(self, command: str, config: Any) -> Any:
        """Show a command as a user would type it, and run it in this process."""
        self.console.print(f"[bold]$ {command_text(command, config)}[/bold]", highlight=False)
        return self.run_command(command, config)


def run_demo(config: DemoConfig, run_command: RunCommand) -> Path:
    """Run the pipeline.

    Args:
        config: the settings.
        run_command: runs the commands, among them the export, which lies above this package.

    Returns:
        The summary's path, OUTPUT/summary.json: for each method `miou` (0..1, multi-scale, best background score, val)
        and `classifier_f1` per seed; `onnx_agreement`, the share of pixels that ONNX and torch label equally;
        `pretrain_accuracy`; and `seconds` per stage.

    Raises:
        DataError: for settings that don't fit, or a pretrained classifier that is too weak.
    """
    if config.seeds < 1:
        raise DataError(f"--seeds {config.seeds}: expected at least 1")
    if config.full:
        return _run_full(config, run_command)
    _remove_earlier(config.folder)
    demo = _Demo(config, run_command)
    started = time.perf_counter()
    weights = config.folder / "backbone.safetensors"
    with demo.stage("pretrain"):
        accuracy = _pretrain(demo, weights)
    runs = [_train_and_score(demo, method, seed, weights) for seed in range(config.seeds) for method in METHODS]
    agreement = _label_twice(demo, runs[-1])
    with demo.stage("report"):
        pages = [demo.call("report", ReportConfig(run, images=6)) for run in runs[-len(METHODS) :]]
    demo.seconds["total"] = round(time.perf_counter() - started, 1)
    summary = config.folder / "summary.json"
    content: dict[str, Any] = {
        method: {"miou": demo.miou[method], "classifier_f1": demo.f1[method]} for method in METHODS
    }
    content |= {"onnx_agreement": agreement, "pretrain_accuracy": accuracy, "seconds": demo.seconds}
    atomic_write_text(summary, json.dumps(content, indent=2) + "\n")
    _conclude(demo, summary, pages, agreement)
    return summary


def _run_full(config: DemoConfig, run_command: RunCommand) -> Path:
    """From generated images to a segmentation model; returns the report."""
    if config.seeds != 1:
        raise DataError(f"--seeds {config.seeds}: the full demo has one seed; leave --seeds or --full away")
    demo, weights = _Demo(config, run_command), config.folder / "backbone.safetensors"
    if not weights.is_file():
        _pretrain(demo, weights)
    return run_pipeline(full_pipeline(config, weights))


def full_pipeline(config: DemoConfig, weights: Path) -> PipelineConfig:
    """The pipeline of `--full`: CPN, masks refined by random walk and dense CRF, DeepLab."""
    affinity = affinity_recipe(AffinityConfig(masks=NOWHERE, output=NOWHERE))
    segment = segment_recipe(SegmentConfig(config.data, NOWHERE, masks=""))
    train = cam_recipe(TrainConfig(config.data, NOWHERE, method="cpn"))
    given = {"weights": weights, "max_steps": config.max_steps}
    return PipelineConfig(
        output=config.folder,
        train=replace_dotted(train, given),
        label=LabelConfig(NOWHERE, "", NOWHERE, scales=SCALES),
        affinity=replace_dotted(affinity, given),
        refine=RefineConfig(NOWHERE, NOWHERE, crf=True),
        segment=replace_dotted(segment, given),
        evaluate=SegmentEvaluateConfig(NOWHERE, "", scales=SEGMENT_SCALES, crf=True),
    )


def _remove_earlier(output: Path) -> None:
    """Empty the output folder, but only if a demo wrote it."""
    if output.is_dir() and any(output.iterdir()):
        if not (output / "backbone.safetensors").is_file():
            raise DataError(f"{output}: is not empty and no demo wrote it; name another folder with --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)


def _pretrain(demo: _Demo, weights: Path) -> float:
    demo.console.print("pretraining the backbone on generated objects that no other split shares", highlight=False)
    shortened = demo.config.max_steps
    accuracy = pretrain_backbone(demo.config.data, weights, settings=replace(PRETRAIN, max_steps=shortened))
    demo.console.print(f"its accuracy on objects held out: {accuracy:.3f}", highlight=False)
    if shortened is None and accuracy < LEAST_ACCURACY:
        raise DataError(
            f"{weights}: the pretrained classifier reaches {accuracy:.3f}; expected {LEAST_ACCURACY} or more"
        )
    return round(accuracy, 4)


def _train_and_score(demo: _Demo, method: MethodName, seed: int, weights: Path) -> Path:
    """Train one method from the pretrained backbone and score its maps on val, which it has not seen."""
    config = demo.config
    run = config.folder / f"{method}-seed{seed}"
    training = cam_recipe(TrainConfig(config.data, run, method=method))
    with demo.stage(f"train {method}"):
        given = {"weights": weights, "seed": seed, "max_steps": config.max_steps}
        demo.call("train", replace_dotted(training, given))
    with demo.stage(f"evaluate {method}"):
        demo.call("evaluate", EvaluateConfig(run, config.data, split="val", scales=SCALES))
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    demo.miou[method].append(round(scores["miou"], 5))
    demo.f1[method].append(round(scores["classifier"]["f1"], 4))
    return run


def _label_twice(demo: _Demo, run: Path) -> float:
    """Label the val images with torch and with the exported model; the share of pixels on which they agree."""
    output, data = demo.config.folder, demo.config.data
    model, eager, exported = output / "model.onnx", output / "masks", output / "masks-onnx"
    with demo.stage("label"):
        demo.call("label", LabelConfig(run, data, eager, split="val", scales=SCALES))
    with demo.stage("export"):
        demo.call("export", ExportConfig(run, model, scales=SCALES))
    with demo.stage("label onnx"):
        _label_onnx(demo, model, exported)
    return round(agreement_of(eager / "SegmentationClass", exported / "SegmentationClass"), 6)


def _label_onnx(demo: _Demo, model: Path, output: Path) -> None:
    from cpn_fast.data.sources.open import open_source

    source = open_source(demo.config.data)
    records = source.records("val")
    folder, table = demo.config.folder / "images", demo.config.folder / "labels.csv"
    folder.mkdir()
    lines = ["image,labels"]
    for record in records:
        (folder / record.image_path.name).write_bytes(read_regular(record.image_path))
        lines.append(f"{record.image_path.name},{';'.join(source.classes[label] for label in record.labels or ())}")
    atomic_write_text(table, "\n".join(lines) + "\n")

    words = [str(word) for word in (model, folder, "--image-labels", table, "--output", output)]
    demo.console.print(f"[bold]$ cpn-label {' '.join(words)}[/bold]", highlight=False)
    (script,) = entry_points(group="console_scripts", name="cpn-label")
    if script.load()(words) != 0:
        raise DataError(f"{model}: cpn-label could not label every image; see {output / 'manifest.jsonl'}")


def agreement_of(first: Path, second: Path) -> float:
    """Share of pixels that are equal in the masks of two folders, in 0..1.

    Raises:
        DataError: if the folders hold different masks, or none.
    """
    names = sorted(path.name for path in first.glob("*.png"))
    if not names or names != sorted(path.name for path in second.glob("*.png")):
        raise DataError(f"{first} and {second}: expected the same masks in both, and at least one")
    equal = total = 0
    for name in names:
        left, right = read_mask(first / name), read_mask(second / name)
        if left.shape != right.shape:
            raise DataError(f"{second / name}: found {right.shape}, expected {left.shape} as in {first / name}")
        equal += int((left == right).sum())
        total += left.size
    return equal / total


def _conclude(demo: _Demo, summary: Path, pages: Sequence[Path], agreement: float) -> None:
    for method, values in demo.miou.items():
        spread = f" +- {100 * np.std(values, ddof=1):.1f} over {len(values)} seeds" if len(values) > 1 else ""
        f1 = float(np.mean(demo.f1[method]))
        demo.console.print(f"{method}: mIoU {100 * np.mean(values):.1f} %{spread}, labels F1 {f1:.3f}", highlight=False)
        if method == "cam" and f1 < LEAST_F1:
            demo.console.print(f"the classifier is weak: expected F1 {LEAST_F1} or more; the figures are worth little")
    demo.console.print(f"ONNX and torch label {100 * agreement:.3f} % of the pixels equally", highlight=False)
    demo.console.print(f"summary: {summary.resolve()}", highlight=False)
    for path in pages:
        demo.console.print(f"report:  {path.resolve()}", highlight=False)
