"""What each part of `make gpu-check` imports, and what to do where it is missing; nothing of it is imported here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

BASE = {"torch": "torch", "triton": "triton", "numpy": "numpy", "PIL": "pillow", "rich": "rich"}
"""Module: the distribution that brings it."""

RUNS = {
    "lightning_fabric": "lightning-fabric",
    "safetensors": "safetensors",
    "cv2": "opencv-python-headless",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "tyro": "tyro",
    "tensorboard": "tensorboard",
    "matplotlib": "matplotlib",
}
PARTS = {
    "kernels": {
        **BASE,
        "pytest": "pytest",
        "xdist": "pytest-xdist",
        "tyro": "tyro",
        "cv2": "opencv-python-headless",
        "scipy": "scipy",
    },
    "bench": {**BASE, **RUNS, "pytest": "pytest"},
    "train": {**BASE, **RUNS},
    "all": BASE,
}
"""What each part imports; of "all", a step that imports more is left out where that is missing."""


def missing(part: str) -> list[str]:
    """Distributions that the part needs and that are not there."""
    return [name for module, name in PARTS[part].items() if importlib.util.find_spec(module) is None]


def how_to_give(names: list[str]) -> str:
    """What to do about missing packages on a machine without a network."""
    listed = " ".join(names)
    return (
        f"gpu-check needs packages that {sys.executable} does not have: {', '.join(names)}.\n"
        "With a network: "
        f"{Path(sys.executable).name} -m pip install {listed}\n"
        "Without one, on another machine with the same Python version: "
        f"pip install --target wheels {listed}\n"
        "then bring the folder here and put it last: PYTHONPATH=wheels make gpu-check ...\n"
        "pytest, pytest-xdist and tyro are pure Python, with what they need a few MB: they can lie in the repository's "
        "folder."
    )
