"""What superpixels and labelling will cost on this machine, from short measurements; rough, to a factor of 2 or so."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_log = logging.getLogger(__name__)

CACHE_LEVELS = 3
"""Superpixel maps per image that training keeps, one per crop scale."""

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
        superpixel_seconds: of one map on one core; None where scikit-image is not installed.
        superpixel_bytes: of one map on disk, at most.
        forward_seconds: backbone -> seconds per pixel of one forward; a backbone that cannot run is left out.
        mask_bytes: of a palette PNG.
        device: what the forwards ran on.
    """

    superpixel_seconds: float | None
    superpixel_bytes: float
    forward_seconds: dict[str, float]
    mask_bytes: float
    device: str


@dataclass(frozen=True)
class Estimate:
    """What a set of images will cost.

    Attributes:
        superpixel_seconds: time to fill the superpixel cache on all cores; None = not measured.
        superpixel_bytes: disk of the superpixel cache, at most.
        label_seconds: backbone -> time of multi-scale labelling with flips.
        label_bytes: disk of the masks.
    """

    superpixel_seconds: float | None
    superpixel_bytes: float
    label_seconds: dict[str, float]
    label_bytes: float


def measure_rates(images: Sequence[np.ndarray], mask_bytes: float | None = None) -> Rates:
    """Time superpixels on a few images and one forward of each backbone of `BACKBONE_PROBES`.

    Args:
        images: uint8 [H, W, 3] each; a few typical ones. Empty: superpixels are not timed.
        mask_bytes: bytes per pixel of the masks at hand; None = VOC's.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    forwards = {name: _forward_seconds(name, side, device) for name, side in BACKBONE_PROBES.items()}
    return Rates(
        superpixel_seconds=_superpixel_seconds(images),
        superpixel_bytes=2.0,  # 16-bit labels
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
    pixels = float(sum(width * height for width, height in sizes))
    views = 2 * sum(scale**2 for scale in LABEL_SCALES)
    labelled = sum(w * h * min(1.0, LABEL_MAX_SIDE / max(w, h)) ** 2 for w, h in sizes) * views
    slic = rates.superpixel_seconds
    return Estimate(
        superpixel_seconds=None if slic is None else pixels * CACHE_LEVELS * slic / (os.cpu_count() or 1),
        superpixel_bytes=pixels * CACHE_LEVELS * rates.superpixel_bytes,
        label_seconds={name: labelled * seconds for name, seconds in rates.forward_seconds.items()},
        label_bytes=pixels * rates.mask_bytes,
    )


def _superpixel_seconds(images: Sequence[np.ndarray]) -> float | None:
    from cpn_kernels.superpixels import superpixels

    try:
        start = time.perf_counter()
        for image in images:
            superpixels(torch.from_numpy(image)[None], segments=200)
        seconds = time.perf_counter() - start
    except ImportError as error:
        _log.info("superpixels are not timed: %s", error)
        return None
    return seconds / sum(image.shape[0] * image.shape[1] for image in images) if images else None


def _forward_seconds(name: str, side: int, device: torch.device) -> float:
    """Seconds per pixel of the second of two forwards (the first one allocates)."""
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
