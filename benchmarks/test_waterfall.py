"""The training step's waterfall: from the ancestors' step to `cpn train`'s, row by row, with the unchanged loss.

Rows of one patch source (SLIC of each crop, or cached maps) see the same patches and have the same losses all along;
between the two sources patches differ by construction, so the first steps of every row take the cached ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.waterfall import BATCH, CROP, rows
from cpn_fast.data.sources.demo import generate_demo

FOLLOWS_THE_MACHINE = True

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CPN_TEST_DATA", "no test data"))
"""Where coco_mini and weights/mobilenet_v2_imagenet.safetensors may lie; generated scenes stand in."""

Rows = list[dict[str, Any]]


def inputs(folder: Path) -> tuple[str, Path | None, str]:
    """Data, weights, and what they are in words."""
    photographs, weights = DATA / "coco_mini", DATA / "weights" / "mobilenet_v2_imagenet.safetensors"
    found = weights if weights.is_file() and not torch.cuda.is_available() else None
    named = "MobileNetV2 with ImageNet weights" if found else "an untrained backbone with calibrated batch norms"
    if photographs.is_dir():
        return f"voc:{photographs}", found, f"coco_mini, {named}"
    return f"demo:{generate_demo(folder / 'demo', train=16, val=1, pretrain=1)}", found, f"generated scenes, {named}"


def run_row(name: str, data: str, weights: Path | None, work: Path) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.waterfall", name, "--data", data, "--work", str(work)]
    argv += ["--weights", str(weights)] if weights else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, f"row {name!r}:\n{done.stderr[-3000:]}"
    return dict(json.loads(done.stdout.splitlines()[-1]))


def difference(found: list[float], expected: list[float]) -> float:
    """Largest relative difference; NaN where one is NaN."""
    return float(np.max([abs(a - b) / max(abs(b), 1e-6) for a, b in zip(found, expected, strict=True)]))


def check_losses(done: Rows) -> None:
    """Every row against the top on the same patches, and all along against the first row of its own patch source.

    The first step's gradient is compared by its norm, to ten times the losses' tolerance.

    Raises:
        AssertionError: for a row whose loss is another one; a row without its check has no figure.
    """
    for row in done:
        row["loss_difference"] = difference(row["first_losses"], done[0]["first_losses"])
        first = next(other for other in done if other["loader"] == row["loader"])
        row["own_loss_difference"] = difference(row["own_losses"], first["own_losses"])
        row["gradient_difference"] = difference([row["gradient_norm"]], [done[0]["gradient_norm"]])
        # Rounding grows with the steps.
        for kind, allowed in (("loss_difference", 1), ("own_loss_difference", 3), ("gradient_difference", 10)):
            assert row[kind] <= allowed * row["tolerance"], f"row {row['name']!r}: {kind} {row[kind]:.2g}"


def test_the_check_sees_another_loss() -> None:
    good = {"name": "good", "loader": "cached", "tolerance": 1e-3}
    good |= {"first_losses": [1.0, 0.9], "own_losses": [0.8], "gradient_norm": 2.0}
    check_losses([good, good | {"name": "equal"}])
    nan = float("nan")
    for changed in (
        {"first_losses": [1.0, 0.902]}, {"own_losses": [0.81]}, {"own_losses": [nan]}, {"gradient_norm": 2.1},
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="bad"):
            check_losses([good, good | {"name": "bad"} | changed])


def test_waterfall(tmp_path: Path, keep: Callable[..., None]) -> None:
    data, weights, named = inputs(tmp_path)
    cuda = torch.cuda.is_available()
    done: Rows = []
    for row in rows(cuda):
        done.append(run_row(row.name, data, weights, tmp_path))
        check_losses(done)
        done[-1]["speed_up"] = done[-1]["images_per_second"] / done[0]["images_per_second"]
        backbone = "ResNet38" if cuda else "MobileNetV2"
        best = max(done, key=lambda row: row["speed_up"])
        # Kept row by row: a run that is ended loses no more than the row it was in.
        keep(
            input=f"{named}; {backbone}, {BATCH} crops of {CROP} px",
            ratio=best["speed_up"],
            fastest_row=best["name"],
            rows=done,
        )
