"""A folder that `cpn label` wrote, as the stages after it read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.sources.base import folders_of
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Source
from cpn_fast.files.background_score import background_score
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image
from cpn_fast.files.mask_folder import SOFT_FOLDER, MaskFolder
from cpn_fast.files.masks import read_labelmap
from cpn_fast.files.member import ImageFile
from cpn_fast.files.output_folder import MANIFEST_NAME, SETTINGS_NAME
from cpn_fast.files.plan import read_plan
from cpn_fast.files.regular import is_regular


@dataclass(frozen=True)
class LabelledFolder:
    """What a labelling says of itself.

    Attributes:
        masks: the folder.
        entries: the manifest's entries of the labelled images, each with `id` and `image`, in the order of their lines.
        classes: the K foreground class names.
        settings: of the labelling, such as `beta`; empty where it left none.
        images: image path by id, where they are known better than the manifest says.
        sources: the folders of the source that knows them.
    """

    masks: MaskFolder
    entries: Sequence[Mapping[str, Any]]
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    images: Mapping[str, ImageFile]
    sources: tuple[Path, ...] = ()

    @classmethod
    def open(cls, path: Path, data: str | None = None) -> LabelledFolder:
        """Read manifest, labelmap and settings.

        Args:
            path: folder that `cpn label` wrote.
            data: source in which to find the images by their ids; None or empty = where the manifest says.

        Raises:
            DataError: if it is no such folder, or nothing is labelled in it.
        """
        masks, manifest = MaskFolder.at(path), path / MANIFEST_NAME
        if not manifest.is_file():
            raise DataError(f"{manifest}: not found; expected a folder that `cpn label` wrote: give that")
        labelled = masks.manifest().last_lines(lambda entry: _is_labelled(entry, manifest))
        if not labelled:
            found = sum(1 for _ in masks.manifest().stream())
            raise DataError(f"{manifest}: none of its {found} images is labelled; run `cpn label` to the end first")
        masks.warn_if_half_done()
        classes, settings = read_labelmap(path / "labelmap.txt"), masks.settings()
        source = open_source(data) if data else None
        sources = () if source is None else folders_of(source)
        return cls(masks, labelled, classes, settings, images_of(source), sources)

    @property
    def planned(self) -> Iterable[str]:
        """The ids of all images that were to be labelled, also of those that are not yet."""
        plan = read_plan(self.path)
        return (entry["id"] for entry in self.entries) if plan is None else plan.ids

    @property
    def path(self) -> Path:
        """The folder of labelmap, manifest and settings."""
        return self.masks.root

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
        return background_score(given, self.settings.get("beta"), f"{self.path / SETTINGS_NAME}: key beta")

    def about(self) -> dict[str, Any]:
        """The labelling's settings as those of a later stage, which it then keeps to."""
        return {f"label.{key}": value for key, value in self.settings.items() if key != "classes"}

    def image_path(self, entry: Mapping[str, Any]) -> ImageFile:
        """Where the image of a manifest entry lies."""
        return self.images.get(entry["id"], Path(entry["image"]))

    def read_folders(self) -> tuple[Path, ...]:
        """What is read: the masks, the source where one is given, and the folders that the ids of images begin in.

        Images beside the labelling were given one by one, in a folder that holds more than images.
        """
        images = ((self.image_path(entry), entry["id"]) for entry in self.entries)
        found = {_begins_in(path, image_id) for path, image_id in images if isinstance(path, Path)}
        around = [folder for folder in sorted(found) if not self.path.resolve().is_relative_to(folder.resolve())]
        return (*self.sources, *around, self.masks.masks, self.path / SOFT_FOLDER)

    def read_image(self, entry: Mapping[str, Any]) -> NDArray[np.uint8]:
        """The image, uint8 [H, W, 3]. Raises DataError where it is gone or cannot be read."""
        path = self.image_path(entry)
        if isinstance(path, Path) and not is_regular(path):
            raise DataError(
                f"{path}: the image of {entry['id']} was not found (it was when it was labelled); put it back, call "
                "from the folder where it was labelled, or give --data SOURCE, where it is found by its id"
            )
        return read_image(path)


def _is_labelled(entry: Mapping[str, Any], manifest: Path) -> bool:
    """Whether a line is that of a labelled image. Raises DataError where it does not say which."""
    if entry["status"] != "ok":
        return False
    if not isinstance(entry.get("image"), str):
        raise DataError(f"{manifest}: {entry['id']!r} has no `image`, the path of its image; label it again")
    return True


def images_of(source: Source | None) -> dict[str, ImageFile]:
    """Image path by id, over all splits of a source; empty without a source."""
    if source is None:
        return {}
    return {record.id: record.image_path for split in source.splits() for record in source.records(split)}


def _begins_in(image: Path, image_id: str) -> Path:
    """The folder of which an id is the path, or of `images` in a data set the data set's."""
    below = len(PurePosixPath(image_id).parts)
    folder = image.parents[min(below, len(image.parents)) - 1]
    listed = folder.name == "images" and any(folder.parent.glob("*.csv"))
    return folder.parent if listed else folder
