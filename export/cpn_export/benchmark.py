"""`cpn-label MODEL --benchmark`: images per second on each provider and in each batch size, with the masks compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cpn_export.label_options import LabelOnnxConfig
from cpn_export.providers import ProviderError, available
from cpn_export.runtime import LabelledBatch, OnnxLabeller, label_rows
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image
from cpn_fast.files.max_side import reduce_image
from cpn_fast.files.photos import find_photos

REPEATS = 5
ALIKE = 0.999
"""Least share of equal pixels with which a speed is given: what labels otherwise is no faster form of the same."""


def run_benchmark(config: LabelOnnxConfig) -> Iterator[str]:
    """Lines of the figures, as they are measured; the median of several calls after one that does not count.

    Args:
        config: `provider` "auto" or "cpu" = all that are there; the first of `images`, or without one noise of
            `max_side`, is repeated to fill the batches.

    Raises:
        DataError: for a model or image that cannot be used, or a provider that was asked for and does not start.
    """
    if not config.batches or min(config.batches) < 1:
        raise DataError(f"--batches {' '.join(map(str, config.batches))}: expected numbers of images, at least 1")
    reference = OnnxLabeller(config.model, "cpu", config.threads)
    image = _image(config, reference.info.max_side if config.max_side is None else config.max_side)
    rows = label_rows([None], len(reference.info.classes))
    expected = reference(image[None], rows)
    height, width = image.shape[:2]
    yield f"{reference.info.precision}, image of {width} x {height} pixels, images/s:"
    asked = config.provider not in ("auto", "cpu")
    for name in [config.provider] if asked else available():
        try:
            labeller = reference if name == "cpu" else OnnxLabeller(config.model, name, config.threads)  # type: ignore[arg-type]
            alike = _alike(labeller(image[None], rows), expected)
        except ProviderError as error:
            if asked:
                raise
            yield f"{name}: not usable: {error}"
            continue
        except DataError as error:
            if asked:
                raise
            yield f"{name}: {error}"
            continue
        if alike < ALIKE:
            yield f"{labeller.running_on}: no figure: only {100 * alike:.2f}% of the pixels are labelled as by the CPU"
            continue
        for size in config.batches:
            yield f"{labeller.running_on}, batch {size}: {_rate(labeller, image, size)}"


def _image(config: LabelOnnxConfig, max_side: int) -> NDArray[np.uint8]:
    """The image that is timed, uint8 [H, W, 3]."""
    if not config.images:
        noise = np.random.default_rng(0)
        return noise.integers(0, 256, (-(-max_side * 3 // 4), max_side, 3), dtype=np.uint8)
    return reduce_image(read_image(find_photos(config.images)[0].path, config.max_pixels), max_side)


def _alike(found: LabelledBatch, expected: LabelledBatch) -> float:
    """Share of pixels with the same label; 0 where scores are not finite."""
    return float((found.mask == expected.mask).mean()) if np.isfinite(found.scores).all() else 0.0


def _rate(labeller: OnnxLabeller, image: NDArray[np.uint8], size: int) -> str:
    """Images per second in batches of that size, with everything that labelling asks of the network."""
    images = np.repeat(image[None], size, axis=0)
    rows = label_rows([None] * size, len(labeller.info.classes))
    times = []
    try:
        for repeat in range(REPEATS + 1):
            started = time.perf_counter()
            labeller(images, rows, with_maps=True)
            if repeat:
                times.append(time.perf_counter() - started)
    except Exception as error:  # onnxruntime's exceptions share no base class; memory is the usual reason
        return f"failed: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return f"{size / statistics.median(times):.2f}"
