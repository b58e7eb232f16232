"""`cpn convert EXPORT --to masks`: what a tool exported as a folder of masks in VOC layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.export import Export, ExportItem, ReadOptions
from cpn_fast.convert.folder import VOID_CLASS, palette_of, split_ids
from cpn_fast.convert.formats import open_export
from cpn_fast.convert.names import NAMES_FILE, read_mapping
from cpn_fast.convert.options import ConvertConfig
from cpn_fast.convert.unpack import unpacked
from cpn_fast.files.digest import file_digest
from cpn_fast.files.disk_space import FILE_BYTES, MASK_BYTES, USUAL_PIXELS
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import image_size
from cpn_fast.files.jobs import Entry, ImageJobs, JobSummary, error_entry, run
from cpn_fast.files.mask_folder import MaskFolder, class_names, foreground_share
from cpn_fast.files.masks import VOID
from cpn_fast.files.names import quoted
from cpn_fast.files.progress import Progress


@dataclass(frozen=True, kw_only=True)
class ToMasksJobs(ImageJobs[ExportItem, ExportItem]):
    """The images of an export.

    Attributes:
        folder: what is written.
        classes: the K class names of the masks.
        void_value: the export's mask value that is void; None where it has no class for it.
        palette: uint8 [256, 3], the colours of the masks.
        images: image path by id, as far as images are known.
    """

    folder: MaskFolder
    classes: tuple[str, ...]
    void_value: int | None
    palette: NDArray[np.uint8]
    images: Mapping[str, Path]

    verb = "convert"
    participle = "converted"
    needed_to = "converted"

    def id_of(self, item: ExportItem) -> str:
        """The id in the manifest."""
        return item.id

    def is_done(self, item: ExportItem, entry: Mapping[str, Any]) -> bool:
        """Whether the mask is there; another export is another setting."""
        return self.folder.has(item.id)

    def prepare(self) -> None:
        """Write the labelmap."""
        self.folder.write_labelmap(self.classes, self.palette)

    def bytes_needed(self, todo: Sequence[ExportItem]) -> float:
        """A generous guess, for most formats give no sizes without reading."""
        return len(todo) * (USUAL_PIXELS * MASK_BYTES + FILE_BYTES)

    def work(self, item: ExportItem) -> Entry:
        """Write the mask of an image."""
        image = self.images.get(item.id)
        try:
            mask = self._values(item.read())
            if image is not None:
                width, height = image_size(image)
                if mask.shape != (height, width):
                    raise DataError(
                        f"{item.id}: the export is {mask.shape[1]} x {mask.shape[0]} pixels, its image {image} {width} "
                        f"x {height}; correct the image that was annotated"
                    )
        except DataError as error:
            return error_entry(item.id, image or Path(item.image_name), str(error))
        self.folder.write(item.id, mask, palette=self.palette)
        held = np.bincount(mask.ravel(), minlength=256)[1 : len(self.classes) + 1] > 0
        return {
            **self.folder.describe(item.id, image or Path(item.image_name), mask),
            "labels": class_names(self.classes, held),
            "labels_from": "masks",
            "foreground": foreground_share(mask),
        }

    def _values(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """With the class for void as void, and the classes behind it one lower."""
        if self.void_value is None:
            return mask
        table = np.arange(256, dtype=np.uint8)
        table[self.void_value] = VOID
        table[self.void_value + 1 : VOID] -= 1
        return table[mask]


def run_to_masks(config: ConvertConfig, progress: Progress) -> JobSummary:
    """Convert an export to masks.

    Args:
        config: the export and where to.
        progress: where plan, bar and result are shown.

    Returns:
        how many masks were written, skipped, failed.

    Raises:
        DataError: for an export that cannot be read, or an output that holds masks of another one.
    """
    path, output = config.masks, config.output
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected what a tool exported")
    if output.resolve() == path.resolve():
        raise DataError(f"--output {output}: the export itself; give another folder")
    with unpacked(path) as content:
        names = config.names or content / NAMES_FILE
        mapping = read_mapping(names) if config.names is not None or names.is_file() else {}
        options = ReadOptions(config.images, config.classes, mapping)
        export = _renamed(open_export(content, config.format, options), mapping)
        items = _selected(export.items, config.split, path)
        classes, void_value = _classes(export.classes, config.void == "label")
        jobs = ToMasksJobs(
            output=output, items=items, data=f"{path} ({export.format})", workers=config.workers,
            settings={"export": str(path), "export_sha256": _digest(path), "classes": list(classes)},
            overwrite=config.overwrite, reads=[place for place in (path, config.images) if place and place.is_dir()],
            folder=MaskFolder.at(output), classes=classes, void_value=void_value,
            palette=palette_of(export.classes, export.labelmap), images=options.image_paths,
        )  # fmt: skip
        summary = run(jobs, progress)
    progress.say(f"{summary.written} masks of {len(classes)} classes written to {jobs.folder.masks}")
    return summary


def _renamed(export: Export, mapping: Mapping[tuple[str, str], str]) -> Export:
    items = tuple(replace(item, id=mapping.get(("image", item.id), item.id)) for item in export.items)
    classes = tuple(mapping.get(("class", name), name) for name in export.classes)
    return replace(export, items=items, classes=classes)


def _selected(items: Sequence[ExportItem], split: Path | None, path: Path) -> tuple[ExportItem, ...]:
    by_id: dict[str, ExportItem] = {}
    for item in items:
        if item.id in by_id:
            raise DataError(
                f"{path}: two images {quoted(item.image_name)} and {quoted(by_id[item.id].image_name)} of one id "
                f"{quoted(item.id)}; rename one"
            )
        by_id[item.id] = item
    wanted = sorted(by_id) if split is None else split_ids(split, by_id, by_id)
    if not wanted:
        raise DataError(f"{path}: no images in it")
    return tuple(by_id[name] for name in wanted)


def _classes(names: tuple[str, ...], void_label: bool) -> tuple[tuple[str, ...], int | None]:
    if not void_label or VOID_CLASS not in names:
        return names, None
    place = names.index(VOID_CLASS)
    return names[:place] + names[place + 1 :], place + 1


def _digest(path: Path) -> str | None:
    """Of a file its content, of a folder the names, sizes and times of its files."""
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        status = file.stat()
        line = f"{file.relative_to(path).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        if file.is_file():
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
