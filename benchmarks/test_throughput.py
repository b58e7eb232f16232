"""Images per second and peak memory of `cpn train` and `cpn label` as a user starts them, eager and --compile.

Each figure comes from a process of its own, so that its peak memory is its own; compilation falls into the first steps,
which are not counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.untrained import calibrate
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.sources.demo import generate_demo
from cpn_fast.models import create_model
from cpn_fast.runs.folder import RunFolder

FOLLOWS_THE_MACHINE = True
"""`cpn train` takes the GPU where there is one."""

CROP, BATCH = 320, 8
UNCOUNTED, COUNTED = 5, 5
TOLERANCE = 1e-4
"""Of the loss of the first five steps."""
LEAST_EQUAL = 0.999
IMAGES = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes enlarged to the size of photographs (384 or 432 a side)."""
    root = generate_demo(tmp_path_factory.mktemp("scenes") / "demo", train=IMAGES, val=1, pretrain=1)
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    (folder / "classes.txt").write_text((root / "classes.txt").read_text())
    names = (root / "classes.txt").read_text().split()
    rows = ["image,labels"]
    for path in sorted((root / "JPEGImages").glob("train_*.jpg")):
        image = Image.open(path)
        image.resize((3 * image.width, 3 * image.height), Image.Resampling.BICUBIC).save(folder / "images" / path.name)
        mask = np.asarray(Image.open(root / "SegmentationClass" / f"{path.stem}.png"))
        rows.append(f"images/{path.name},{';'.join(names[label - 1] for label in np.unique(mask) if label)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def cpn(*argv: object) -> None:
    subprocess.run([sys.executable, "-m", "cpn_fast.cli", *map(str, argv)], check=True, capture_output=True)


def train(data: Path, output: Path, method: str, *more: str) -> list[dict[str, Any]]:
    """Train a few steps and return their records."""
    cpn(
        "train", "--data", f"folder:{data}", "--split", "all", "--method", method, "--backbone", "mobilenet_v2",
        "--crop", CROP, "--batch-size", BATCH, "--lr", 1e-4, "--epochs", 20, "--max-steps", UNCOUNTED + COUNTED,
        "--eval-every", 0, "--options.warm-up", 0, "--output", output, *more,
    )  # fmt: skip
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"]


def figures(records: list[dict[str, Any]]) -> dict[str, float]:
    """Images per second of the counted steps, and the peak memory in MiB."""
    rates = [record["images_per_second"] for record in records[UNCOUNTED:]]
    return {
        "items_per_second": statistics.median(rates),
        "peak_mib": max(record["peak_memory_mib"] for record in records),
    }


@pytest.mark.parametrize("method", ["cam", "seam", "cpn"])
def test_training(method: str, data: Path, tmp_path: Path, record_pair: Callable[..., float]) -> None:
    eager = train(data, tmp_path / "eager", method)
    compiled = train(data, tmp_path / "compiled", method, "--compile", "on")
    for expected, found in zip(eager[:5], compiled[:5], strict=True):
        assert abs(found["loss"] - expected["loss"]) <= TOLERANCE * max(1.0, abs(expected["loss"]))
    record_pair(candidate=figures(compiled), peer=figures(eager))


LABEL = """
import json, sys, time
from pathlib import Path
from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.console.progress import peak_memory_mib
import torch
run, data, output, compiled = sys.argv[1:]
for attempt in range(2):  # the first one compiles
    started = time.perf_counter()
    done = run_label(LabelConfig(
        Path(run), f"folder:{data}", Path(output),
        split="all", beta=0.1, compile=compiled == "1", overwrite=True, sheet=0,
    ))
    seconds = time.perf_counter() - started
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Path(output, "figures.json").write_text(json.dumps(
    {"items_per_second": done.written / seconds, "peak_mib": peak_memory_mib(device)}
))
"""


def label(run: Path, data: Path, output: Path, compiled: bool) -> dict[str, float]:
    argv = [sys.executable, "-c", LABEL, str(run), str(data), str(output), str(int(compiled))]
    subprocess.run(argv, check=True, capture_output=True)
    return dict(json.loads((output / "figures.json").read_text()))


def test_labelling(
    data: Path,
    tmp_path: Path,
    record_pair: Callable[..., float],
) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    config = TrainConfig(f"folder:{data}", run.path, method="cpn", backbone="mobilenet_v2")
    run.create(config, (data / "classes.txt").read_text().split())
    torch.manual_seed(0)
    net = create_model(config, len(run.classes))
    first = np.asarray(Image.open(min((data / "images").iterdir())))
    calibrate(net, torch.from_numpy(first)[None])
    run.save_model(net, 0)
    eager, compiled = (label(run.path, data, tmp_path / name, name == "compiled") for name in ("eager", "compiled"))
    found, expected = (
        np.concatenate([np.asarray(Image.open(p)).ravel() for p in sorted((tmp_path / name).rglob("*.png"))])
        for name in ("compiled", "eager")
    )
    shares = np.bincount(expected) / expected.size
    assert (shares > 0.05).sum() >= 2, "masks of one value would agree whatever was computed"
    assert (found == expected).mean() >= LEAST_EQUAL
    record_pair(candidate=compiled, peer=eager)
