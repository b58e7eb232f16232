"""Exports of annotation tools as dictionaries of files, written, opened, and said in plain names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cpn_fast.data.sources.base import FileSource
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError

WIDTH, HEIGHT = 8, 6
Files = Mapping[str, Any]
"""Path -> None for an image of WIDTH x HEIGHT, an array for an image of these pixels, text, bytes, or JSON."""


def write(root: Path, files: Files) -> Path:
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(path, format="PNG")
        elif isinstance(content, np.ndarray):
            Image.fromarray(content).save(path, format="PNG")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root


def opened(spec: str | Path) -> FileSource:
    source = open_source(spec)
    assert isinstance(source, FileSource)
    return source


def named(source: FileSource, split: str = "all") -> dict[str, tuple[str, ...] | None]:
    """Id -> names of its classes."""
    return {
        record.id: None if record.labels is None else tuple(source.classes[label] for label in record.labels)
        for record in source.records(split)
    }


def mask_of(source: FileSource, name: str) -> np.ndarray | None:
    record = next(record for record in source.records("all") if record.id == name)
    return source.read(record, with_mask=True).mask


def complaint(spec: str | Path) -> str:
    """The one line that a bad export gives: an error, or the only problem of its scan."""
    try:
        source = opened(spec)
        problems = [str(problem) for problem in source.scan("all").problems]
        for record in source.scan("all").records:
            try:
                source.read(record, with_mask=True)
            except DataError as error:
                problems.append(str(error))
    except DataError as error:
        problems = [str(error)]
    assert len(problems) == 1, problems
    assert "\n" not in problems[0] and len(problems[0]) < 700
    return problems[0]
