"""VOC's `ImageSets/Main`: the lists of splits, and for each class `CLASS_SPLIT.txt` with 1, 0 or -1 for every image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cpn_fast.data.sources.base import Problem, canonical
from cpn_fast.files.errors import DataError
from cpn_fast.files.names import quoted
from cpn_fast.files.text import read_lines

MAIN = "ImageSets/Main"

_LINE = re.compile(r"(?P<id>.+?)\s+(?P<flag>-1|0|1)")


@dataclass
class MainLabels:
    """What the lists of the classes say.

    Attributes:
        labels: sorted class indices by canonical id, of every image that is in one of them.
        problems: lines that say something else.
    """

    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def split_lists(root: Path, classes: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Split name -> its list, of the lists that are no class's."""
    folder = root / MAIN
    return {path.stem: (path,) for path in sorted(folder.glob("*.txt")) if _class_of(path, classes) is None}


def read_main_labels(root: Path, classes: Sequence[str]) -> MainLabels:
    """The labels of all lists of the classes together.

    0 is VOC's "difficult": the class is in the image, as it is for the annotations, which name such objects too.
    """
    found = MainLabels()
    sets: dict[str, set[int]] = {}
    for path in sorted((root / MAIN).glob("*.txt")):
        number = _class_of(path, classes)
        if number is None:
            continue
        try:
            lines = read_lines(path, "lines `ID 1`, `ID 0` or `ID -1`")
        except DataError as error:
            found.problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
            continue
        for line, text in lines:
            match = _LINE.fullmatch(text)
            if match is None:
                message = f"{quoted(text)}; expected an image's name and 1, 0 (difficult) or -1"
                found.problems.append(Problem(path, message, line))
                continue
            labels = sets.setdefault(canonical(match["id"]), set())
            if match["flag"] != "-1":
                labels.add(number)
    found.labels = {name: tuple(sorted(labels)) for name, labels in sets.items()}
    return found


def _class_of(path: Path, classes: Sequence[str]) -> int | None:
    """The class of which a file lists the images; None for the list of a split."""
    name, line, _ = path.stem.rpartition("_")
    return classes.index(name) if line and name in classes else None
