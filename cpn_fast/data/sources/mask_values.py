"""Image labels from masks: which classes have a pixel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.regions import Shape
from cpn_fast.data.types import VOID
from cpn_fast.files.errors import DataError
from cpn_fast.files.labelmap import Labelmap
from cpn_fast.files.masks import read_mask

_THREADS = min(8, 2 * (os.cpu_count() or 1))


def shapes_of_masks(
    paths: Sequence[Path], classes: Sequence[str], labelmap: Labelmap | None, problems: list[Problem]
) -> list[tuple[Shape, ...] | None]:
    """For each mask a shape without place per class in it; None, and a problem, for one that cannot be read."""

    def values(path: Path) -> list[int] | str:
        try:
            mask = read_mask(path, len(classes), labelmap=labelmap)
        except DataError as error:
            return str(error)
        return np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()

    found: list[tuple[Shape, ...] | None] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, present in zip(paths, pool.map(values, paths), strict=True):
            if isinstance(present, str):
                problems.append(Problem(path, present.removeprefix(f"{path}").lstrip(",: ")))
                found.append(None)
            else:
                named = (value for value in present if 0 < value < VOID)
                found.append(tuple(Shape(classes[value - 1], None, "mask") for value in named))
    return found
