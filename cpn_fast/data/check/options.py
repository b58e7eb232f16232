"""Options of `cpn check-data`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cpn_fast.files.images import DEFAULT_MAX_PIXELS


@dataclass(frozen=True)
class CheckConfig:
    """Options of `cpn check-data`.

    Attributes:
        data: source: a bare path, or `KIND:PATH`, e.g. `folder:PATH`, `classes:PATH`, `voc:PATH`, `coco:PATH`,
            `yolo:PATH`, `cvat:PATH`, `label-studio:PATH`.
        split: split to check; None = all of them.
        max_pixels: images with more pixels than this are a problem.
        strict: warnings are problems, too.
        html: also write a page with sample pictures to this file.
        estimate: also time superpixels and backbones for a table of costs; not where there are problems.
    """

    data: Annotated[str, tyro.conf.Positional]
    split: str | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    strict: bool = False
    html: Path | None = None
    estimate: bool = True
