"""A folder that `cpn label` wrote, as the stages after it read it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.mask_folder import SOFT_FOLDER, soft_path
from cpn_fast.files.masks import read_labelmap
from cpn_fast.files.output_folder import MANIFEST_NAME, SETTINGS_NAME, read_settings
from cpn_fast.files.regular import is_regular, open_regular
from cpn_fast.files.soft_maps import SoftMaps, read_soft_maps


@dataclass(frozen=True)
class LabelledFolder:
    """What a labelling says of itself.

    Attributes:
        path: the folder.
        entries: the manifest's entries of the labelled images, each with `id` and `image`, in their order.
        classes: the K foreground class names.
        settings: of the labelling, such as `beta`; empty where it left none.
        images: image path by id, where they are known better than the manifest says.
    """

    path: Path
    entries: tuple[Mapping[str, Any], ...]
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    images: Mapping[str, Path]

    @classmethod
    def open(cls, path: Path, data: str | None = None) -> LabelledFolder:
        """Read manifest, labelmap and settings.

        Args:
            path: folder that `cpn label` wrote.
            data: source in which to find the images by their ids; None or empty = where the manifest says.

        Raises:
            DataError: if it is no such folder, or nothing is labelled in it.
        """
        manifest, settings = path / MANIFEST_NAME, path / SETTINGS_NAME
        if not manifest.is_file():
            raise DataError(f"{manifest}: not there; expected a folder that `cpn label` wrote: give that")
        entries = list(Manifest(manifest).entries().values())
        ok = [entry for entry in entries if entry.get("status") == "ok"]
        if not ok:
            raise DataError(
                f"{manifest}: none of its {len(entries)} images is labelled; run `cpn label` to the end first"
            )
        for entry in ok:
            if not isinstance(entry.get("image"), str):
                raise DataError(f"{manifest}: {entry['id']!r} has no `image`, the path of its image; label it again")
        stored = read_settings(settings) if settings.is_file() else {}
        return cls(path, tuple(ok), read_labelmap(path / "labelmap.txt"), stored, images_of(data))

    def need_soft_maps(self, otherwise: str = "") -> None:
        """Raise DataError where the folder has no class maps; `otherwise` ends the advice."""
        if not (self.path / SOFT_FOLDER).is_dir():
            raise DataError(
                f"{self.path / SOFT_FOLDER}: no class maps there; call `cpn label` again with --soft-maps{otherwise}"
            )

    def beta(self, given: float | None) -> float:
        """The background score: the given one, else the labelling's.

        Raises:
            DataError: where neither is there, or it is outside of 0..1.
        """
        beta = self.settings.get("beta") if given is None else given
        if not isinstance(beta, int | float):
            raise DataError(f"{self.path / SETTINGS_NAME}: says no beta, the background score; give --beta")
        if not 0 <= beta <= 1:
            raise DataError(f"--beta {beta}: expected a score in 0..1")
        return float(beta)

    def about(self) -> dict[str, Any]:
        """The labelling's settings as those of a later stage, which it then keeps to."""
        return {f"label.{key}": value for key, value in self.settings.items() if key != "classes"}

    def image_path(self, entry: Mapping[str, Any]) -> Path:
        """Where the image of a manifest entry lies."""
        return self.images.get(entry["id"], Path(entry["image"]))

    def read_image(self, entry: Mapping[str, Any]) -> NDArray[np.uint8]:
        """The image, uint8 [H, W, 3]. Raises DataError where it is gone or cannot be read."""
        path = self.image_path(entry)
        if not is_regular(path):
            raise DataError(
                f"{path}: the image of {entry['id']} is not there (it was when it was labelled); put it back, call "
                "from the folder where it was labelled, or give --data SOURCE, where it is found by its id"
            )
        return read_image(path)

    def read_maps(self, image_id: str, otherwise: str = "") -> SoftMaps:
        """The class maps of an image.

        Raises:
            DataError: where they are missing (`otherwise` ends the advice), damaged, or hold another class than 1..K.
        """
        path = soft_path(self.path, image_id)
        if not is_regular(path):
            raise DataError(f"{path}: not there; label again with --soft-maps{otherwise}")
        soft = read_soft_maps(path)
        wrong = [int(value) for value in soft.classes if not 1 <= value <= len(self.classes)]
        if wrong:
            raise DataError(
                f"{path}: maps of class {wrong[0]}; expected 1..{len(self.classes)} by labelmap.txt: label it again"
            )
        return soft


def check_size(path: Path, found: tuple[int, int], image_path: Path, image: NDArray[np.uint8]) -> None:
    """Raise DataError unless what was made of an image, (height, width), has its size, uint8 [H, W, 3]."""
    if found != image.shape[:2]:
        raise DataError(
            f"{path}: made for {found[1]} x {found[0]} pixels but {image_path} is {image.shape[1]} x "
            f"{image.shape[0]}; expected equal sizes: label the image again"
        )


def check_power(name: str, value: float) -> float:
    """`value`, or a DataError where it is no number above 0; `name` is the option's."""
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"--{name} {value}: expected a number above 0")
    return value


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file as hexadecimal; None where it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, DataError):
        return None


def images_of(data: str | None) -> dict[str, Path]:
    """Image path by id, over all splits of a source; empty without a source."""
    if not data:
        return {}
    source = open_source(data)
    return {record.id: record.image_path for split in source.splits() for record in source.records(split)}
