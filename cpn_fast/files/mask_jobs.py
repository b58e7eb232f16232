"""Jobs that give masks, which may be made on other machines than the one that writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.jobs import Entry, ImageJobs, Item, Ready
from cpn_fast.files.mask_folder import MaskFiles, MaskFolder
from cpn_fast.files.member import ImageFile
from cpn_fast.files.sent_work import SentWork
from cpn_fast.files.soft_maps import SoftMaps


@dataclass(frozen=True, kw_only=True)
class MaskJobs(ImageJobs[Item, Ready], SentWork[Item, Ready]):
    """A job whose only results are masks in a folder and what the manifest says of them.

    Attributes:
        folder: where the masks go.
    """

    resumes: ClassVar[bool] = True

    folder: MaskFolder

    def to_send(self) -> Self:
        """Without the images and what only the process needs that writes the folder."""
        return dataclasses.replace(self, items=(), planned=(), reads=(), command="")

    def held(self) -> Self:
        """With masks that are kept as bytes until they are taken."""
        return dataclasses.replace(self, folder=HeldMasks.instead_of(self.folder))

    def take(self, entry: Entry) -> MaskFiles | None:
        """The files of the image's mask."""
        return self.folder.take(entry) if isinstance(self.folder, HeldMasks) else None

    def store(self, entry: Entry, left: MaskFiles) -> None:
        """Write them."""
        self.folder.put(entry["id"], left)


@dataclass(frozen=True)
class HeldMasks(MaskFolder):
    """Masks that are kept as bytes until they are taken, instead of being written.

    Attributes:
        written: the folder that they are meant for.
    """

    written: MaskFolder
    _held: dict[str, MaskFiles] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def instead_of(cls, folder: MaskFolder) -> HeldMasks:
        """What stands in for a folder."""
        return cls(folder.root, folder.masks, folder)

    def encode(
        self,
        image_id: str,
        mask: NDArray[np.uint8],
        soft: SoftMaps | None = None,
        palette: NDArray[np.uint8] | None = None,
    ) -> MaskFiles:
        """As the folder does."""
        return self.written.encode(image_id, mask, soft, palette)

    def put(self, image_id: str, files: MaskFiles) -> None:
        """Keep the files of an image."""
        self._held[image_id] = files

    def describe(self, image_id: str, image: ImageFile, mask: NDArray[np.uint8]) -> dict[str, Any]:
        """As the folder does."""
        return self.written.describe(image_id, image, mask)

    def take(self, entry: Mapping[str, Any]) -> MaskFiles | None:
        """The files of an entry's image, which are not kept any more; None where it has none."""
        return self._held.pop(entry["id"], None)
