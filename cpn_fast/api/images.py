"""One photograph in, one labelled photograph out: what every model's labeller has in common. Free of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpn_fast.data.sources.base import unknown_class
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image, upright_pixels
from cpn_fast.files.masks import write_mask

ImageLike = str | Path | NDArray[np.uint8] | Image.Image
"""A photograph: the path of a file, an array uint8 [H, W, 3] (RGB) or [H, W] (grey), or a PIL image."""

Images = list[ImageLike] | tuple[ImageLike, ...]


@dataclass(frozen=True)
class LabelledImage:
    """What a model says of one image of H x W pixels.

    Attributes:
        mask: uint8 [H, W]; 0 is background, value c + 1 is `classes[c]`.
        maps: float32 [P, H, W] in 0..1, of the classes in `labels`: the maps that the mask was made of (RCAM, or CAM of
            a network without refinement), of a segmentation network the probabilities.
        scores: float32 [K], class probabilities in 0..1.
        classes: the names of the model's K classes.
        labels: the names of the P active classes: those that were given, else those that the model predicts.
    """

    mask: NDArray[np.uint8]
    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: tuple[str, ...]
    labels: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Write the mask as a palette PNG with VOC's colours, in one step."""
        write_mask(path, self.mask)


class ImageLabeller(ABC):
    """Labels photographs; made by `labeller()` of a model.

    Attributes:
        classes: the names of the model's K classes.
    """

    classes: tuple[str, ...]

    @overload
    def __call__(self, image: ImageLike, labels: Sequence[str] | None = None) -> LabelledImage: ...

    @overload
    def __call__(self, image: Images, labels: Sequence[Sequence[str] | None] | None = None) -> list[LabelledImage]: ...

    def __call__(
        self, image: ImageLike | Images, labels: Sequence[Any] | None = None
    ) -> LabelledImage | list[LabelledImage]:
        """Label one image, or a list of them.

        Args:
            image: the path of a file, an array uint8 [H, W, 3] or [H, W], a PIL image; or a list of such.
            labels: names of the classes in the image; None = the model's own scores decide. For a list of images, a
                list with an entry for each.

        Returns:
            A `LabelledImage`, for a list a list of them.

        Raises:
            DataError: for an image that cannot be read, an array of another shape or dtype, or an unknown class.
        """
        if not isinstance(image, list | tuple):
            return self._label(pixels_of(image), self._indices(labels))
        every = [None] * len(image) if labels is None else list(labels)
        if len(every) != len(image) or any(isinstance(names, str) for names in every):
            raise DataError(
                f"labels {every!r} of {len(image)} images; expected a list with the class names (or None) of each"
            )
        return [self._label(pixels_of(one), self._indices(names)) for one, names in zip(image, every, strict=True)]

    def _indices(self, names: Sequence[str] | None) -> tuple[int, ...] | None:
        """Sorted class indices of names; one name alone may stand without a list."""
        if names is None:
            return None
        given = [names] if isinstance(names, str) else list(names)
        for name in given:
            if name not in self.classes:
                raise DataError(unknown_class(name, self.classes))
        return tuple(sorted({self.classes.index(name) for name in given}))

    @abstractmethod
    def _label(self, image: NDArray[np.uint8], present: tuple[int, ...] | None) -> LabelledImage:
        """Label an image uint8 [H, W, 3] that holds these classes; None = the model's scores decide."""


def pixels_of(image: ImageLike) -> NDArray[np.uint8]:
    """An image as uint8 [H, W, 3] RGB; files and PIL images by the rules of `cpn_fast.files.images.read_image`.

    Raises:
        DataError: for a file that cannot be read, or an array of another shape or dtype.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return upright_pixels(image, "the PIL image")
    if not isinstance(image, np.ndarray):
        raise DataError(f"image is a {type(image).__name__}; expected a path, an array or a PIL image")
    if image.dtype == np.uint8 and image.size and image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype == np.uint8 and image.size and image.ndim == 3 and image.shape[2] == 3:
        return np.ascontiguousarray(image)
    raise DataError(f"image is an array {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3] or [H, W], 0..255")
