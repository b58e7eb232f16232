"""A folder of masks in VOC layout: found, looked through, read with checks, written."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.atomic import atomic_write_bytes
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import image_size, list_images
from cpn_fast.files.labelmap import Labelmap, labelmap_of
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import encode_mask, read_mask, write_labelmap
from cpn_fast.files.member import ImageFile
from cpn_fast.files.other_masks import other_masks
from cpn_fast.files.output_folder import (
    MANIFEST_NAME,
    SETTINGS_NAME,
    raise_io_errors_as,
    read_settings,
)
from cpn_fast.files.plan import read_plan
from cpn_fast.files.regular import is_regular
from cpn_fast.files.soft_maps import SoftMaps, encode_soft_maps, read_soft_maps

MASK_FOLDER = "SegmentationClass"
SOFT_FOLDER = "SoftMaps"
LABELMAP_NAME = "labelmap.txt"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskFiles:
    """What is written of an image.

    Attributes:
        mask: a palette PNG.
        soft: its class maps, an `.npz`; None without.
    """

    mask: bytes
    soft: bytes | None = None


@dataclass(frozen=True)
class MaskFolder:
    """Masks, and what lies beside them.

    Attributes:
        root: holds labelmap.txt, manifest.jsonl, settings.json and SoftMaps/ID.npz, each where there is one.
        masks: holds ID.png; an id with slashes makes sub-folders.
    """

    root: Path
    masks: Path

    @classmethod
    def at(cls, root: Path) -> MaskFolder:
        """The folder in our own layout, there or about to be written."""
        return cls(root, root / MASK_FOLDER)

    def classes(self) -> tuple[str, ...] | None:
        """The foreground classes of mask values 1..K by the labelmap, None without. Raises DataError for a bad one."""
        found = labelmap_of(self.root / LABELMAP_NAME)
        return None if found is None else found.classes

    def manifest(self) -> Manifest:
        """What was done to each image."""
        return Manifest(self.root / MANIFEST_NAME)

    def settings(self) -> dict[str, Any]:
        """How the masks were made; empty where nobody has said. Raises DataError where it cannot be read."""
        path = self.root / SETTINGS_NAME
        return read_settings(path) if path.is_file() else {}

    def lacking(self) -> tuple[int, list[str], str]:
        """Of how many images masks were to be made, the ids that have none yet, and the command that resumes.

        Without a plan or manifest, as of masks of other tools, nothing is known: 0 images. Raises DataError for a plan
        that cannot be read.
        """
        plan = read_plan(self.root)
        if plan is None:
            total, lacking = 0, []
            for entry in self.manifest().stream():
                total += 1
                if entry["status"] != "ok":
                    lacking.append(entry["id"])
            return total, lacking, ""
        known = self.manifest().index()
        try:
            lacking = [name for name in plan.ids if (known.find(name) or {}).get("status") != "ok"]
        finally:
            known.close()
        return len(plan.ids), lacking, plan.command

    def warn_if_half_done(self) -> None:
        """Warn where images that were to get a mask have none: who reads the folder goes on with the others."""
        total, lacking, command = self.lacking()
        if lacking:
            log.warning(
                "%s: %d of %d images have a mask, %s for instance has none; to finish it: %s",
                self.root, total - len(lacking), total, lacking[0],
                f"`{command}`" if command else "label with the same settings again",
            )  # fmt: skip

    def paths(self) -> Mapping[str, ImageFile]:
        """Id -> PNG of every mask, sorted; hidden files (unfinished ones are) do not count.

        Raises:
            DataError: if there is none, or two of one id.
        """
        paths: dict[str, Path] = {}
        for path in list_images(self.masks):
            if path.suffix.lower() != ".png":
                continue
            name = path.relative_to(self.masks).as_posix()[: -len(path.suffix)]
            if name in paths:
                raise DataError(f"{path}: the same id {name!r} as {paths[name]}; rename or remove one")
            paths[name] = path
        if not paths:
            raise DataError(f"{self.masks}: no masks; expected {MASK_FOLDER}/ID.png, as `cpn label` writes them")
        return paths

    def mask_path(self, image_id: str) -> ImageFile:
        """Where the mask of an image is read. Raises DataError for an id that leads out of the folder."""
        return self.mask_file(image_id)

    def mask_file(self, image_id: str) -> Path:
        """The PNG of an image in a folder of them, there or about to be written. Raises DataError as `mask_path`."""
        return _inside(self.masks, image_id, ".png")

    def soft_path(self, image_id: str) -> Path:
        """Where the soft maps of an image lie. Raises DataError for an id that leads out of the folder."""
        return _inside(self.root / SOFT_FOLDER, image_id, ".npz")

    def has(self, image_id: str, soft: bool = False) -> bool:
        """Whether the mask of an image is there, with `soft` its soft maps too."""
        return self.mask_file(image_id).is_file() and (not soft or self.soft_path(image_id).is_file())

    def read(self, image_id: str, num_classes: int | None = None, image: ImageFile | None = None) -> NDArray[np.uint8]:
        """The mask of an image, uint8 [H, W], in the values of `classes`; it may be in the colours of the labelmap.

        Args:
            image_id: which.
            num_classes: K; other values than 0..K and 255 are an error. None = not checked.
            image: the image file, whose size has to be that of the mask; None = not compared.

        Raises:
            DataError: for a mask that cannot be read, or does not fit.
        """
        return read_fitting_mask(self.mask_path(image_id), num_classes, image, labelmap_of(self.root / LABELMAP_NAME))

    def read_soft(self, image_id: str, num_classes: int, otherwise: str = "") -> SoftMaps:
        """The class maps of an image.

        Args:
            image_id: which.
            num_classes: K.
            otherwise: ends the advice where they are missing.

        Raises:
            DataError: where they are missing, damaged, or hold another class than 1..K.
        """
        path = self.soft_path(image_id)
        if not is_regular(path):
            raise DataError(f"{path}: not found; label again with --soft-maps{otherwise}")
        soft = read_soft_maps(path)
        wrong = [int(value) for value in soft.classes if not 1 <= value <= num_classes]
        if wrong:
            raise DataError(
                f"{path}: maps of class {wrong[0]}; expected 1..{num_classes} by {LABELMAP_NAME}: label it again"
            )
        return soft

    def write_labelmap(self, classes: Sequence[str], palette: NDArray[np.uint8] | None = None) -> None:
        """Write the names of mask values 1..K. Raises DataError for more classes than a mask can hold."""
        write_labelmap(self.root / LABELMAP_NAME, classes, palette)

    def write(
        self,
        image_id: str,
        mask: NDArray[np.uint8],
        soft: SoftMaps | None = None,
        palette: NDArray[np.uint8] | None = None,
    ) -> None:
        """Write the mask of an image, uint8 [H, W], after its soft maps where it has any, each in one step.

        Raises:
            DataError: where they cannot be written, saying what to do.
        """
        self.put(image_id, self.encode(image_id, mask, soft, palette))

    def encode(
        self,
        image_id: str,
        mask: NDArray[np.uint8],
        soft: SoftMaps | None = None,
        palette: NDArray[np.uint8] | None = None,
    ) -> MaskFiles:
        """What `write` writes. Raises DataError for class maps that are none."""
        maps = None if soft is None else encode_soft_maps(soft, str(self.soft_path(image_id)))
        return MaskFiles(encode_mask(mask, palette, image_id), maps)

    def put(self, image_id: str, files: MaskFiles) -> None:
        """Write the files of an image as they are; see `write`, after a power cut the mask may be missing."""
        with raise_io_errors_as(self.root, f"the mask of {image_id}"):
            if files.soft is not None:
                atomic_write_bytes(self.soft_path(image_id), files.soft)
            atomic_write_bytes(self.mask_file(image_id), files.mask, lasting=False)

    def describe(self, image_id: str, image: ImageFile, mask: NDArray[np.uint8]) -> dict[str, Any]:
        """What every manifest says of an image that is done: where it is, where its mask is, and the size in pixels."""
        height, width = mask.shape
        where = self.mask_file(image_id).relative_to(self.root).as_posix()
        return {"id": image_id, "status": "ok", "image": str(image), "mask": where, "width": width, "height": height}


def read_fitting_mask(
    path: ImageFile, num_classes: int | None, image: ImageFile | None, labelmap: Labelmap | None = None
) -> NDArray[np.uint8]:
    """A mask uint8 [H, W] that fits its classes and the size of its image; see `MaskFolder.read`."""
    mask = read_mask(path, num_classes, labelmap=labelmap)
    if image is not None:
        width, height = image_size(image)
        if mask.shape != (height, width):
            raise DataError(
                f"{path}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels (width x height), its image {image} "
                f"{width} x {height} (after EXIF rotation); label the image again"
            )
    return mask


def check_size(path: ImageFile, found: tuple[int, ...], image_path: ImageFile, image: NDArray[np.uint8]) -> None:
    """Raise DataError unless what was made of an image, (height, width), has its size, uint8 [H, W, 3]."""
    if found != image.shape[:2]:
        raise DataError(
            f"{path}: made for {found[1]} x {found[0]} pixels but {image_path} is {image.shape[1]} x "
            f"{image.shape[0]}; expected equal sizes: label the image again"
        )


def seen_instead(target: Path) -> str:
    """Ends the error of a folder without masks: what is there instead, or ""."""
    seen = other_masks(target / MASK_FOLDER) or (other_masks(target) if target.is_dir() else "")
    return f" ({seen})" if seen else ""


def foreground_share(mask: NDArray[np.uint8]) -> float:
    """The share of pixels that are of a class, neither background nor void, in 0..1; 0 only where there is none."""
    share = float(np.mean((mask > 0) & (mask < 255)))
    return round(share, 4) or share


def without_object(entries: Iterable[Mapping[str, Any]], remedy: str) -> str:
    """How many masks hold no object, in one line with what may help; "" where all do.

    Args:
        entries: of the manifest, with `foreground`; those of images that are known to hold no class do not count.
        remedy: what to do.
    """
    counted = empty = 0
    example = ""
    for entry in entries:
        if entry.get("labels") == [] and entry.get("labels_from") == "image":
            continue
        counted += 1
        if entry["foreground"] == 0:
            empty += 1
            example = example or entry["id"]
    return f"{empty} of {counted} masks hold no object, that of {example} for instance: {remedy}" if empty else ""


def class_names(classes: Sequence[str], present: Sequence[bool] | NDArray[np.bool_]) -> list[str]:
    """The names of the classes that are True in a row [K]."""
    return [name for name, held in zip(classes, present, strict=True) if held]


def _inside(folder: Path, image_id: str, suffix: str) -> Path:
    relative = PurePosixPath(image_id)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise DataError(f"image id {image_id!r} leads out of the output folder; rename the image or its list entry")
    return folder / f"{image_id}{suffix}"
