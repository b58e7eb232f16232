"""Superpixel maps that another process makes than the one that keeps the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch

from cpn_fast.config.training import AugmentOptions, PatchOptions
from cpn_fast.data.superpixels.maps import encode_maps, make_maps, read_picture, write_content
from cpn_fast.data.types import Record, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry
from cpn_fast.files.member import ImageFile
from cpn_fast.files.sent_work import SentWork
from cpn_kernels.ops.superpixels import backend_version

Missing = tuple[Record, Path]
"""An image whose maps are to be made, and the file that they go to."""


@dataclass(frozen=True, kw_only=True)
class MapsOfImages(SentWork[Missing, Missing]):
    """The superpixel maps of images.

    An entry holds `maps`, the `maps.Entry` of the image; what is left to be stored is its file.

    Attributes:
        source: reads the images.
        patch: of the cache, with its backend named.
        augment: of the cache.
        made_by: name and version of the backend.
    """

    verb: ClassVar[str] = "superpixels"
    resumes: ClassVar[bool] = True

    source: Source
    patch: PatchOptions
    augment: AugmentOptions
    made_by: str
    workers: int = 1  # SLIC itself takes the cores that there are

    def id_of(self, item: Missing) -> str:
        """The record's id."""
        return item[0].id

    def image_of(self, item: Missing) -> ImageFile:
        """The record's image."""
        return item[0].image_path

    def on_worker(self) -> Self:
        """Raises DataError where the superpixels would be others."""
        try:
            here = backend_version(self.patch.backend)
        except ImportError as error:
            here = str(error)
        if here != self.made_by:
            raise DataError(
                f"superpixels are those of {self.made_by} where the command was given, on a worker: {here}; install "
                "the same on every machine of the cluster, or name one that all have with --patch.backend"
            )
        return self

    def work(self, item: Missing) -> Entry:
        """Make the maps of one image. Raises DataError where it cannot be read."""
        record, path = item
        picture = read_picture(self.source, path, self.patch, self.augment, record)
        entry, content = encode_maps(picture, make_maps([picture], self.patch, torch.device("cpu"))[0])
        return {"id": record.id, "status": "ok", "maps": entry, "content": content}

    def take(self, entry: Entry) -> object | None:
        """The file."""
        return entry.pop("content", None)

    def store(self, entry: Entry, left: bytes) -> None:
        """Write it."""
        write_content(entry["maps"].path, left)
