"""`cpn convert`: a folder of masks as the files that other tools read, and what they export as masks."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpn_fast.convert.folder import MaskSelection, select_masks
from cpn_fast.convert.formats import FORMATS
from cpn_fast.convert.names import NAMES_FILE, mapping_text
from cpn_fast.convert.options import ConvertConfig
from cpn_fast.convert.to_masks import run_to_masks
from cpn_fast.convert.writer import Converted, Shapes, WriteOptions, Writer, write_file
from cpn_fast.files.apart import check_apart
from cpn_fast.files.atomic import atomic_path, atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.jobs import JobSummary, bounded_map
from cpn_fast.files.mask_folder import LABELMAP_NAME
from cpn_fast.files.output_folder import MANIFEST_NAME, SETTINGS_NAME
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.review_csv import REVIEW_NAME, decided_names
from cpn_fast.files.threads import thread_pool

ABOUT_NAME = "convert.json"
"""In a folder that this command wrote; only such a folder is replaced by --overwrite."""


@dataclass(frozen=True)
class ConvertSummary:
    """What was converted.

    Attributes:
        images: masks in the output.
        objects: annotations, or objects of the zip.
        left_out: images of the folder that are not done, or not in the split.
        output: the file or folder.
        renamed: names of images and classes that are others in the output.
    """

    images: int
    objects: int
    left_out: int
    output: Path
    renamed: int = 0


def run_convert(config: ConvertConfig, progress: Progress = SILENT) -> ConvertSummary | JobSummary:
    """Convert a folder of masks, or an export to one.

    Args:
        config: what to convert, and how.
        progress: where bar and result are shown.

    Returns:
        how much was converted.

    Raises:
        DataError: for masks, classes, a split or an output that do not fit. No output is written then, and an old one
            is left as it was.
    """
    _check_options(config)
    if config.to == "masks":
        return run_to_masks(config, progress)
    assert config.format is not None
    selection = _reviewed(config, select_masks(config.masks, config.classes, config.split, config.images), progress)
    if config.void == "label":
        selection = selection.with_void_class()
    kind = FORMATS[config.format].writer
    selection = selection.named(kind.name_rules)
    shapes: Shapes = config.shapes or ("masks" if kind.has_masks else "polygons")
    writer = kind(
        selection, WriteOptions(config.instances, shapes, config.tolerance, config.image_prefix, config.copy_images)
    )
    try:
        _check_output(config, kind, selection.folder)
        objects, void = _convert(progress, config, writer)
    except OSError as error:
        raise DataError(
            f"{config.output}: cannot write it ({error.strerror or error}); free disk space, correct the permissions, "
            "or give another --output"
        ) from error
    progress.say(_summary_line(config, selection, objects, void))
    return ConvertSummary(len(selection.items), objects, selection.left_out, config.output, len(selection.renamed))


def _reviewed(config: ConvertConfig, selection: MaskSelection, progress: Progress) -> MaskSelection:
    """The masks of which a person said what `--only` asks for; all where it is not given."""
    if config.only is None:
        return selection
    folder = find_masks(config.masks)
    assert folder is not None
    review = config.review or folder.root / REVIEW_NAME
    chosen = selection.only(decided_names(folder, folder.paths(), config.only, review))
    if not chosen.items:
        raise DataError(f"{review}: none of the {len(selection.items)} masks that are asked for is {config.only}")
    progress.say(f"{len(chosen.items)} of {len(selection.items)} masks are {config.only} by {review}")
    return chosen


def _check_options(config: ConvertConfig) -> None:
    config.check_reviewed()
    if config.workers < 1:
        raise DataError(f"--workers {config.workers}: expected at least 1")
    if not 0 <= config.tolerance < 1000:
        raise DataError(f"--tolerance {config.tolerance}: expected a number of pixels from 0 to 1000")
    if config.to == "masks":
        if config.only is not None:
            raise DataError(f"--only {config.only}: goes by a review of masks; leave it out with --to masks")
        return
    if config.format is None:
        raise DataError("--format is missing: expected that of the tool, or --to masks for what a tool exported")
    kind = FORMATS[config.format].writer
    if config.names is not None:
        raise DataError("--names is for the way back: give it with --to masks")
    if config.shapes == "polygons" and not kind.has_polygons:
        raise DataError(f"--shapes polygons: {config.format} holds masks only; leave the option out")
    if config.shapes == "masks" and not kind.has_masks:
        raise DataError(f"--shapes masks: {config.format} holds polygons only; leave the option out")
    if config.copy_images and kind.image_folder is None:
        raise DataError(f"--copy-images: {config.format} holds no images; leave the option out")
    if config.copy_images and config.images is None:
        raise DataError("--copy-images: give the folder of the images with --images")


def _summary_line(config: ConvertConfig, selection: MaskSelection, objects: int, void: int) -> str:
    text = f"{config.output}: {len(selection.items)} images, {objects} objects, {len(selection.classes)} classes"
    if selection.left_out:
        reasons = [f"not {config.only}"] if config.only else []
        reasons += ["not in the split"] if config.split else [] if config.only else ["not done by the manifest"]
        text += f"; {selection.left_out} images excluded, {' or '.join(reasons)}"
    if void:
        text += f"; {void} void pixels became background"
    if selection.renamed:
        text += f"; {len(selection.renamed)} names changed, see {_names_path(config)}"
    return text


def _convert(progress: Progress, config: ConvertConfig, writer: Writer[Any]) -> tuple[int, int]:
    """Numbers of objects, and of void pixels that the format could not keep."""
    objects = void = 0
    items, selection = writer.selection.items, writer.selection
    with (
        progress.items("convert", len(items)) as advance,
        (_new_folder if writer.makes_folder else atomic_path)(config.output) as target,
        thread_pool(config.workers, "convert") as pool,
    ):

        def made() -> Iterator[Converted[Any]]:
            nonlocal objects, void
            for result in bounded_map(pool, lambda item: writer.convert(item, target), items, 8 * config.workers):
                objects, void = objects + result.objects, void + result.void
                yield result
                advance(1)

        writer.write(target, made())
        if writer.makes_folder:
            about = {"format": config.format, "masks": str(config.masks), "classes": list(selection.classes)}
            write_file(target / ABOUT_NAME, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
            if selection.renamed:
                write_file(target / NAMES_FILE, mapping_text(selection.renamed))
    if not writer.makes_folder:
        for ending, text in writer.beside().items():
            atomic_write_text(config.output.with_name(config.output.name + ending), text)
        if selection.renamed:
            atomic_write_text(_names_path(config), mapping_text(selection.renamed))
        else:
            _names_path(config).unlink(missing_ok=True)  # of what was replaced
    return objects, void


def _names_path(config: ConvertConfig) -> Path:
    assert config.format is not None
    if FORMATS[config.format].writer.makes_folder:
        return config.output / NAMES_FILE
    return config.output.with_name(f"{config.output.name}.{NAMES_FILE}")


def _check_output(config: ConvertConfig, kind: type[Writer[Any]], masks: Path) -> None:
    check_apart(config.output, [masks, *([] if config.images is None else [config.images])])
    beside = (masks.parent / name for name in (LABELMAP_NAME, MANIFEST_NAME, SETTINGS_NAME))
    if any(config.output.resolve() == path.resolve() for path in (config.classes, config.split, *beside) if path):
        raise DataError(f"{config.output}: is read by this command; give another --output")
    if config.output.is_dir() != kind.makes_folder and config.output.exists():
        found, expected = ("a folder", "file") if config.output.is_dir() else ("a file", "folder")
        raise DataError(f"{config.output}: is {found}; expected the name of the {expected} to write")
    if config.output.exists() and not config.overwrite:
        raise DataError(f"{config.output}: exists; give another --output, or --overwrite to replace it")
    if config.output.is_dir() and any(config.output.iterdir()) and not (config.output / ABOUT_NAME).is_file():
        raise DataError(
            f"{config.output}: a folder that `cpn convert` did not write, so it is not replaced; give another --output"
        )


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".tmp-{os.getpid()}-{secrets.token_hex(6)}"
    temporary, old = path.parent / name, path.parent / f"{name}-old"
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
