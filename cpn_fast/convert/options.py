"""Options of `cpn convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.config.reviewed import ReviewedOptions
from cpn_fast.convert.formats import FormatName
from cpn_fast.convert.instances import Instances
from cpn_fast.convert.writer import Shapes


@dataclass(frozen=True)
class ConvertConfig(ReviewedOptions):
    """Write a folder of masks in VOC layout, ours or anyone's, in another tool's format; or bring corrected masks back.

    Attributes:
        masks: folder with SegmentationClass/ID.png and labelmap.txt. With a manifest.jsonl, as `cpn label` writes it,
            only the images that are done there are taken. With --to masks: what a tool exported, a file, zip or folder.
        format: the tool's format: a JSON (coco, label-studio), a zip (cvat, "Segmentation mask 1.1") or a folder (the
            others). With --to masks it is recognised where it is not given.
        output: the file or folder to write, e.g. masks.json, masks.zip or masks-yolo.
        to: masks = the other way, from the tool's export to a folder of masks.
        classes: class names, one a line, where the folder or the export has none of its own, or in another order.
        split: list of image ids, one a line; only these are taken.
        images: folder of the images: gives their file names, and the sizes are compared. None = the names in the
            manifest, else ID.jpg.
        instances: class = one object per class of an image; components = one per connected component of it.
        shapes: masks = pixels; polygons = outlines, where a format has both (coco, label-studio, datumaro).
        tolerance: how far an outline may move, in pixels, so that it needs fewer points; 0 = along the pixels' edges.
        void: what becomes of void pixels (255) in a format that has none: background, or label = a class called void,
            which the way back makes void again.
        image_prefix: stands before the images' names in label-studio, e.g. /data/local-files/?d=photos/.
        copy_images: put the images into the output folder too, where the tool looks for them.
        names: the names.csv that the way out wrote where it had to change names; the way back then undoes it.
        overwrite: replace an existing output.
        workers: threads that read and convert masks.
        allow_failures: end with status 0 though some images could not be converted (--to masks).
    """

    masks: Annotated[Path, tyro.conf.Positional]
    format: FormatName | None = None
    output: Path = tyro.MISSING
    to: Literal["masks"] | None = None
    classes: Path | None = None
    split: Path | None = None
    images: Path | None = None
    instances: Instances = "class"
    shapes: Shapes | None = None
    tolerance: float = 0.0
    void: Literal["background", "label"] = "background"
    image_prefix: str = ""
    copy_images: bool = False
    names: Path | None = None
    overwrite: bool = False
    workers: int = 2
    allow_failures: bool = False
