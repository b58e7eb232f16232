"""Jobs that give masks, which may be made on other machines than the one that writes them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.jobs import ImageJobs, Item, Ready
from cpn_fast.files.mask_folder import MaskFiles, MaskFolder
from cpn_fast.files.member import ImageFile
from cpn_fast.files.soft_maps import SoftMaps


@dataclass(frozen=True, kw_only=True)
class MaskJobs(ImageJobs[Item, Ready]):
    """A job whose only results are masks in a folder and what the manifest says of them.

    It can be sent to another process: what it holds can be pickled.

    Attributes:
        folder: where the masks go.
    """

    folder: MaskFolder

    @abstractmethod
    def image_of(self, item: Item) -> ImageFile:
        """The image file of an item, for the manifest."""

    @property
    def group(self) -> int:
        """How many images go through the network together at most."""
        return 1

    def to_send(self) -> Self:
        """The job without what only the process needs that writes the folder."""
        return dataclasses.replace(self, items=(), planned=(), reads=(), command="")

    def on_worker(self) -> Self:
        """The job ready in the process that it was sent to: its network on the device there."""
        return self


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
