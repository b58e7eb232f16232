"""`cpn convert`: a folder of masks as COCO JSON or as a CVAT zip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from cpn_fast.convert import coco, cvat
from cpn_fast.convert.folder import MaskItem, MaskSelection, select_masks
from cpn_fast.convert.instances import Instances
from cpn_fast.files.atomic import atomic_write
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import bounded_map
from cpn_fast.files.progress import SILENT, Progress

T = TypeVar("T")


@dataclass(frozen=True)
class ConvertConfig:
    """Write a folder of masks in VOC layout, ours or anyone's, in another tool's format.

    Attributes:
        masks: folder with SegmentationClass/ID.png and labelmap.txt. With a manifest.jsonl, as `cpn label` writes it,
            only the images that are done there are taken.
        format: coco = one instances JSON with compressed RLE; cvat = a zip of "Segmentation mask 1.1". Void pixels
            (255) belong to no object in either.
        output: the file to write, e.g. masks.json or masks.zip.
        classes: class names, one a line, where the folder has no labelmap.txt.
        split: list of image ids, one a line; only these are taken.
        images: folder of the images: gives their file names, and the sizes are compared. None = the names in the
            manifest, else ID.jpg.
        instances: class = one object per class of an image; components = one per connected component of it.
        overwrite: replace an existing output.
        workers: threads that read and convert masks.
    """

    masks: Annotated[Path, tyro.conf.Positional]
    format: Literal["coco", "cvat"]
    output: Path
    classes: Path | None = None
    split: Path | None = None
    images: Path | None = None
    instances: Instances = "class"
    overwrite: bool = False
    workers: int = 2


@dataclass(frozen=True)
class ConvertSummary:
    """What was converted.

    Attributes:
        images: masks in the output.
        objects: annotations, or objects of the zip.
        left_out: images of the folder that are not done, or not in the split.
        output: the file.
    """

    images: int
    objects: int
    left_out: int
    output: Path


def run_convert(config: ConvertConfig, progress: Progress = SILENT) -> ConvertSummary:
    """Convert a folder of masks.

    Args:
        config: what to convert, and how.
        progress: where bar and result are shown.

    Returns:
        how much was converted.

    Raises:
        DataError: for masks, classes, a split or an output that do not fit. No output is written then, and an old one
            is left as it was.
    """
    if config.workers < 1:
        raise DataError(f"--workers {config.workers}: expected at least 1")
    folder = select_masks(config.masks, config.classes, config.split, config.images)
    if config.format == "cvat":
        cvat.check_names(folder)
    try:
        _check_output(config)
        objects, void = _convert(progress, config, folder)
    except OSError as error:
        raise DataError(
            f"{config.output}: cannot write it ({error.strerror or error}); free disk space, correct the permissions, "
            "or give another --output"
        ) from error
    text = f"{config.output}: {len(folder.items)} images, {objects} objects, {len(folder.classes)} classes"
    if folder.left_out:
        text += f"; {folder.left_out} images excluded, not {'in the split' if config.split else 'done by the manifest'}"
    if void:
        text += f"; {void} void pixels became background"
    progress.say(text)
    return ConvertSummary(len(folder.items), objects, folder.left_out, config.output)


def _convert(progress: Progress, config: ConvertConfig, folder: MaskSelection) -> tuple[int, int]:
    """Numbers of objects, and of void pixels where the format has to rewrite them."""
    items, options = folder.items, (len(folder.classes), config.instances)
    with (
        progress.items("convert", len(items)) as advance,
        atomic_write(config.output) as file,
        ThreadPoolExecutor(config.workers, thread_name_prefix="convert") as pool,
    ):

        def made(convert: Callable[[MaskItem], T]) -> Iterator[T]:
            for result in bounded_map(pool, convert, items, 8 * config.workers):
                yield result
                advance(1)

        if config.format == "cvat":
            return cvat.write_cvat(file, folder, made(lambda item: cvat.convert_item(item, *options)))
        return coco.write_coco(file, folder, made(lambda item: coco.convert_item(item, *options))), 0


def _check_output(config: ConvertConfig) -> None:
    if config.output.is_dir():
        raise DataError(f"{config.output}: is a folder; expected the name of the file to write")
    if config.output.exists() and not config.overwrite:
        raise DataError(f"{config.output}: exists; give another --output, or --overwrite to replace it")
