"""What is killed and starved: the commands that write many files or run long, on a small set of generated images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import forks

STEPS = 6
TRAINED = ("--crop", "64", "--batch-size", "4", "--max-steps", str(STEPS), "--checkpoint-every", "1",
           "--eval-every", "0", "--log-every", "1", "--workers", "1", "--accelerator", "cpu",
           "--backbone", "resnet38_tiny")  # fmt: skip
MAPS = ("--scales", "1", "--no-flip")
SHOWN = ("--sheet", "0")


@dataclass(frozen=True)
class Found:
    """What a command has left in its folder.

    Attributes:
        content: digest of every file that is its result, by path; and the records of a training's steps.
        doubled: images and steps that stand there more than once.
        left: files that belong to nothing: half-written ones and locks.
    """

    content: dict[str, str]
    doubled: int
    left: int


@dataclass(frozen=True)
class Subject:
    """A command.

    Attributes:
        name: in the record.
        words: the command, `--output` left out.
        again: words that the same command takes besides to go on where it was stopped, once it has begun.
        found: reads its folder.
    """

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...]
    found: Callable[[Path], Found]

    def at(self, output: Path) -> list[str]:
        """The command for an output folder; to go on, where one was begun there."""
        again = self.again if (output / "config.json").is_file() else ()
        return [*self.words, "--output", str(output), *again]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _left(folder: Path) -> int:
    return sum(path.name.startswith((".tmp-", ".lock")) for path in folder.rglob("*"))


def masks_in(folder: Path) -> Found:
    """Masks, soft maps, and the manifest's lines."""
    files = [path for part in ("SegmentationClass", "SoftMaps") for path in sorted((folder / part).glob("*.*"))]
    content = {str(path.relative_to(folder)): digest(path) for path in files if not path.name.startswith(".")}
    settled = Counter[str]()
    manifest = folder / "manifest.jsonl"
    for line in manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else ():
        try:
            settled[json.loads(line)["id"]] += 1
        except ValueError:
            continue  # half a line, which readers leave out
    content |= dict.fromkeys((f"manifest: {name}" for name in settled), "")
    return Found(content, sum(count - 1 for count in settled.values()), _left(folder))


def training_in(folder: Path) -> Found:
    """Weights, and the steps of the log."""
    model, log = folder / "model.safetensors", folder / "metrics.jsonl"
    steps = Counter[int]()
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        record = json.loads(line)
        if "loss" in record:
            steps[record["step"]] += 1
    content = {f"step {step}": "" for step in steps} | ({model.name: digest(model)} if model.is_file() else {})
    return Found(content, sum(count - 1 for count in steps.values()), _left(folder))


def pipeline_in(folder: Path) -> Found:
    """Every training and every folder of masks of `cpn run`."""
    parts = {name: training_in(folder / name) for name in ("first", "train", "segment")}
    parts |= {name: masks_in(folder / name) for name in ("first-masks", "masks", "masks-refined")}
    content = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.content.items()}
    content |= {path.name: "" for path in folder.glob("*.onnx")} | {path.name: "" for path in folder.glob("*.html")}
    return Found(content, sum(part.doubled for part in parts.values()), _left(folder))


def _make(words: list[str]) -> None:
    ended = forks.run(words, limit=300)
    if ended.status != 0:
        raise RuntimeError(f"{' '.join(words)} ended with status {ended.status}:\n{ended.said}")


def write_data(folder: Path) -> str:
    """Generated images: 12 of train, 6 of val; the source's specification."""
    from cpn_fast.data.sources.demo import generate_demo

    return f"demo:{generate_demo(folder / 'demo', train=12, val=6, pretrain=16, processes=1)}"


def subjects(folder: Path, data: str) -> dict[str, Subject]:
    """By name; what they read of one another is made here, by the commands themselves."""
    run, masks, model, segment = folder / "run", folder / "masks", folder / "model.onnx", folder / "segment"
    train = ("cpn", "train", "--data", data, "--method", "cpn", *TRAINED, "--options.warm-up", "0.5")
    label = ("cpn", "label", str(run), "--data", data, "--split", "train", "--device", "cpu", *MAPS, *SHOWN)
    fit = ("cpn", "segment", "train", "--data", data, "--masks", str(masks), *TRAINED)
    _make([*train, "--output", str(run)])
    _make([*label, "--soft-maps", "--output", str(masks)])
    _make([*fit, "--output", str(segment)])
    _make(["cpn", "export", str(run), *MAPS, "--output", str(model)])
    images, found = Path(data.removeprefix("demo:")) / "JPEGImages", masks_in
    few = "--max-steps 2 --checkpoint-every 1 --batch-size 4 --accelerator cpu"
    whole = ("cpn", "run", "--data", data, "--backbone", "resnet38_tiny", "--crop", "64", "--rounds", "2",
             "--scales", "1", "--train", few, "--segmentation", few, "--refinement", "--iterations 1",
             "--evaluate", "--scales 1 --no-flip", "--label", "--no-flip --device cpu")  # fmt: skip
    listed = (
        Subject("train", train, ("--resume",), training_in),
        Subject("label", (*label, "--soft-maps"), (), found),
        Subject("label on Ray", (*label, "--soft-maps", "--engine", "ray", "--workers-per-node", "2"), (), found),
        Subject("refine", ("cpn", "refine", str(masks), "--crf", "--workers", "2"), (), found),
        Subject("segment train", fit, ("--resume",), training_in),
        Subject("segment predict", ("cpn", "segment", "predict", str(segment), "--data", data, "--split", "train",
                                    "--scales", "1"), (), found),
        Subject("cpn-label", ("cpn-label", str(model), str(images), *SHOWN), (), found),
        Subject("run", whole, (), pipeline_in),
    )  # fmt: skip
    return {subject.name: subject for subject in listed}
