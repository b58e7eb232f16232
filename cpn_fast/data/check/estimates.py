"""What superpixels and labelling will cost on this machine, from short measurements; rough, to a factor of 2 or so."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpn_fast.config.training import AugmentOptions, PatchOptions
from cpn_fast.data.types import Record, Source

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

LABEL_SCALES = (0.5, 1.0, 1.5, 2.0)
LABEL_MAX_SIDE = 1024
"""Defaults of labelling: these scales, each also flipped, on images reduced to this long side."""

BACKBONE_PROBES = {"mobilenet_v2": 256, "resnet38": 64}
"""Backbones that are timed -> side of the square image that is timed, in pixels (both take about a second)."""

_MASK_BYTES_PER_PIXEL = 0.03
"""Of a palette PNG: the mean of VOC's own masks is about 0.02 to 0.03."""


@dataclass(frozen=True)
class Rates:
    """Seconds and bytes per pixel on this machine.

    Attributes:
        superpixel_seconds: of all cached maps of an image on one core; None = not measured.
        superpixel_bytes: of all cached maps of an image on disk; None = not measured.
        forward_seconds: backbone -> seconds per pixel of one forward; a backbone that cannot run is left out.
        mask_bytes: of a palette PNG.
        device: what the forwards ran on.
    """

    superpixel_seconds: float | None
    superpixel_bytes: float | None
    forward_seconds: dict[str, float]
    mask_bytes: float
    device: str


@dataclass(frozen=True)
class Estimate:
    """What a set of images will cost.

    Attributes:
        superpixel_seconds: time to fill the superpixel cache on all cores; None = not measured.
        superpixel_bytes: disk of the superpixel cache; None = not measured.
        label_seconds: backbone -> time of multi-scale labelling with flips.
        label_bytes: disk of the masks.
    """

    superpixel_seconds: float | None
    superpixel_bytes: float | None
    label_seconds: dict[str, float]
    label_bytes: float


def measure_rates(source: Source, records: Sequence[Record], mask_bytes: float | None = None) -> Rates:
    """Compute the superpixels of a few images, and one forward of each backbone of `BACKBONE_PROBES`.

    Args:
        source: reads the records.
        records: a few typical images, all readable. Empty: superpixels are not measured.
        mask_bytes: bytes per pixel of the masks at hand; None = VOC's.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slic_seconds, slic_bytes = _superpixel_rates(source, records) if records else (None, None)
    forwards = {name: _forward_seconds(name, side, device) for name, side in BACKBONE_PROBES.items()}
    return Rates(
        superpixel_seconds=slic_seconds,
        superpixel_bytes=slic_bytes,
        forward_seconds=forwards,
        mask_bytes=_MASK_BYTES_PER_PIXEL if mask_bytes is None else mask_bytes,
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
    )


def estimate(sizes: Sequence[tuple[int, int]], rates: Rates) -> Estimate:
    """Costs for images of these sizes.

    Args:
        sizes: (width, height) in pixels.
        rates: of this machine.
    """
    pixels = _pixels(sizes)
    cached = _pixels(sizes, AugmentOptions().resize_range()[1])
    labelled = _pixels(sizes, LABEL_MAX_SIDE) * 2 * sum(scale**2 for scale in LABEL_SCALES)
    seconds, stored = rates.superpixel_seconds, rates.superpixel_bytes
    return Estimate(
        superpixel_seconds=None if seconds is None else cached * seconds / (os.cpu_count() or 1),
        superpixel_bytes=None if stored is None else cached * stored,
        label_seconds={name: labelled * seconds for name, seconds in rates.forward_seconds.items()},
        label_bytes=pixels * rates.mask_bytes,
    )


def _pixels(sizes: Sequence[tuple[int, int]], max_side: int | None = None) -> float:
    """All pixels, of images reduced to `max_side` where they are larger."""
    shrink = (min(1.0, max_side / max(size)) if max_side else 1.0 for size in sizes)
    return sum(width * height * factor**2 for (width, height), factor in zip(sizes, shrink, strict=True))


def _superpixel_rates(source: Source, records: Sequence[Record]) -> tuple[float | None, float | None]:
    """Seconds and bytes per pixel, of a cache that is filled with these images and thrown away."""
    from cpn_fast.data.superpixels.cache import SuperpixelCache

    augment = AugmentOptions()
    with tempfile.TemporaryDirectory() as folder:
        cache = SuperpixelCache(source, records, PatchOptions(cache_dir=Path(folder)), augment)
        try:
            seconds = cache.prepare(progress=False, processes=1).seconds
        except ImportError as error:
            _log.info("superpixels are not timed: %s", error)
            return None, None
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    shapes = [source.read(record).image.shape for record in records]
    pixels = _pixels([(width, height) for height, width, _ in shapes], augment.resize_range()[1])
    return seconds / pixels, stored / pixels


def _forward_seconds(name: str, side: int, device: torch.device) -> float:
    """Seconds per pixel of the second of two forwards (the first one allocates)."""
    import torch

    from cpn_fast.models.backbones import create_backbone

    with torch.device("meta"):  # no time for an initialisation that nobody needs
        backbone = create_backbone(name)
    backbone.to_empty(device=device).eval()
    with torch.inference_mode():
        for tensor in [*backbone.parameters(), *backbone.buffers()]:
            tensor.zero_()  # what happens to lie in memory may be denormal, which is slow
        image = torch.zeros(1, 3, side, side, device=device)
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            backbone(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
    return seconds / side**2
