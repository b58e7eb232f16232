"""Options of `cpn review`; free of jinja2 and Pillow, so that --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ReviewConfig:
    """Look through a folder of masks in a browser and say of each: accepted, rejected, or needs correction.

    Attributes:
        masks: folder that `cpn label`, `cpn refine`, `cpn segment predict` or `cpn convert --to masks` wrote, or
            anyone's with SegmentationClass/ID.png and labelmap.txt.
        data: source in which the images are found by their ids, e.g. a bare path; None = where the manifest says.
        output: the page to write; beside it comes a folder of small pictures. None = review.html in the folder of
            masks.
        serve: serve the page on 127.0.0.1 instead; decisions then go into review.csv in the folder of masks at once.
        port: of --serve; 0 = one that is free.
        classes: class names, one a line, where the folder has no labelmap.txt, or in another order.
        size: long side of the small pictures in pixels.
        workers: threads that make them.
        allow_failures: end with status 0 though some masks could not be read.
    """

    masks: Annotated[Path, tyro.conf.Positional]
    data: str | None = None
    output: Path | None = None
    serve: bool = False
    port: int = 0
    classes: Path | None = None
    size: int = 320
    workers: int = 2
    allow_failures: bool = False
