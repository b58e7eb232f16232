"""The picture rows of a report: image, ground truth, CAM, RCAM and mask, as images inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpn_fast.cam.map_options import ResolvedMaps
from cpn_fast.data.types import Record, Source
from cpn_fast.files.masks import read_mask
from cpn_fast.files.palette import page_palette
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.reader import Failure, InferenceOptions
from cpn_fast.metrics.beta_sweep import mask_at
from cpn_fast.runs.folder import RunFolder

if TYPE_CHECKING:
    from cpn_fast.cam.inference import Prediction

SIDE = 200
"""Long side of a picture in pixels."""


@dataclass(frozen=True)
class Row:
    """One image of the report.

    Attributes:
        title: the image's id.
        labels: active class indices 0..K-1, for the legend.
        own_labels: the image has labels; False: the network's scores stood in.
        pictures: column name -> data URI.
    """

    title: str
    labels: tuple[int, ...]
    own_labels: bool
    pictures: dict[str, str]


@dataclass(frozen=True)
class RowOptions:
    """How the rows are made.

    Attributes:
        maps: how they are made.
        max_side: longer images are reduced to it first.
        device: "auto", "cpu" or "cuda".
        masks: folder of masks written before; where it has no mask of an image, the network's own is shown.
    """

    maps: ResolvedMaps
    max_side: int
    device: str
    masks: Path | None


def make_rows(run: RunFolder, source: Source, records: Sequence[Record], options: RowOptions) -> list[Row]:
    """Label `records` with the run's network and draw them.

    Args:
        run: with weights.
        source: reads the records.
        records: the images, few.
        options: see there.

    Returns:
        A row per image that could be read.

    Raises:
        DataError: if the run has no weights, or the data names classes it doesn't know.
        ModuleNotFoundError: where torch is not installed; the rest of the page does without.
    """
    from cpn_fast.cam.inference import open_labeller, predictions

    how = options.maps
    labeller = open_labeller(run, how, options.device, run.background_score(None, how.refine.refine))
    mapping = ClassMapping.between(source.classes, run.classes)
    inference = InferenceOptions(max_side=options.max_side, with_mask=True)
    found = predictions(labeller, source, records, mapping, inference)
    return [_row(item, run, labeller.beta, options.masks) for item in found if not isinstance(item, Failure)]


def _row(item: Prediction, run: RunFolder, beta: float, masks: Path | None) -> Row:
    pictures = {"image": photo_uri(item.image)}
    if item.mask is not None:
        pictures["ground truth"] = mask_uri(item.mask)
    refined = any(name == "rcam" for name, _ in item.maps)
    pictures["CAM"] = photo_uri(heat(item.image, item.classes, item.at_image_size("cam")))
    if refined:
        pictures["RCAM"] = photo_uri(heat(item.image, item.classes, item.at_image_size("rcam")))
    stored = None if masks is None else masks / f"{item.record.id}.png"
    if stored is not None and stored.is_file():
        pictures["mask"] = mask_uri(read_mask(stored, len(run.classes)))
    else:
        winner, score = item.best("rcam" if refined else "cam")
        pictures["mask"] = mask_uri(mask_at(winner, score, beta))
    return Row(item.record.id, tuple(map(int, item.classes)), item.given is not None, pictures)


def heat(image: NDArray[np.uint8], classes: NDArray[np.intp], maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each pixel's best class in its colour, as strong as its score, over the dimmed grey image.

    Args:
        image: uint8 [H, W, 3].
        classes: the P classes of the maps, 0..K-1.
        maps: float32 [P, H, W] in 0..1.

    Returns:
        uint8 [H, W, 3].
    """
    grey = 0.6 * np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    if not len(classes):
        return grey.astype(np.uint8)
    score = maps.max(axis=0)[..., None].clip(0, 1)
    colour = page_palette()[1 + classes[maps.argmax(axis=0)]]
    return ((1 - 0.85 * score) * grey + 0.85 * score * colour).astype(np.uint8)


def photo_uri(image: NDArray[np.uint8]) -> str:
    """A photograph uint8 [H, W, 3], resized to `SIDE`, as a JPEG data URI."""
    return _uri(_resized(Image.fromarray(image), Image.Resampling.BICUBIC), "JPEG", "image/jpeg", quality=85)


def mask_uri(mask: NDArray[np.uint8]) -> str:
    """A mask uint8 [H, W] in the page's colours, resized to `SIDE`, as a PNG data URI."""
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette(page_palette().tobytes())
    return _uri(_resized(picture, Image.Resampling.NEAREST), "PNG", "image/png", optimize=True)


def _resized(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    factor = SIDE / max(picture.size)
    return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), how)


def _uri(picture: Image.Image, kind: str, media_type: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:{media_type};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
