"""A batch of training crops made on the GPU from the images as they are, against the native library's, one thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.measuring import device_ms
from cpn_fast.config.training import AugmentOptions
from cpn_fast.data.loading.augment import IMAGENET_MEAN_PIXEL, draw_geometry, draw_jitter
from cpn_fast.data.loading.jitter import jittered_crop
from cpn_kernels import native_library
from cpn_kernels.ops.augmented_crop import augmented_crop, pack

BATCH, HEIGHT, WIDTH, SIDE = 16, 375, 500, 448
RANGES = (0.3, 0.3, 0.3, 0.1)


@pytest.mark.gpu
def test_crops_on_the_gpu_against_one_thread(against: Callable[..., float], keep: Callable[..., None]) -> None:
    """Copies to the GPU included, of images or of crops; the bits are the same. The kernels also alone."""
    if not native_library.available():
        pytest.skip("no native library")
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(BATCH)]
    options = AugmentOptions(crop=SIDE)
    places = [draw_geometry(HEIGHT, WIDTH, options, random).place for _ in images]
    steps = [draw_jitter(RANGES, random) for _ in images]
    given = list(zip(images, places, steps, strict=True))
    packed = [pack(*each) for each in given]
    pixels, weights = (torch.from_numpy(np.concatenate([crop[part] for crop in packed])) for part in (0, 1))
    numbers, amounts = (torch.from_numpy(np.stack([crop[part] for crop in packed])) for part in (2, 3))

    def on_gpu() -> torch.Tensor:
        return augmented_crop(pixels.cuda(), weights.cuda(), numbers, amounts.cuda(), SIDE, IMAGENET_MEAN_PIXEL)

    def on_host() -> torch.Tensor:
        return torch.from_numpy(np.stack([jittered_crop(*each, IMAGENET_MEAN_PIXEL) for each in given])).cuda()

    def agree() -> None:
        assert torch.equal(on_gpu(), on_host())

    against(candidate=on_gpu, peer=on_host, agree=agree, items=BATCH)
    there = pixels.cuda(), weights.cuda(), numbers, amounts.cuda()
    keep(device_ms=device_ms(lambda: augmented_crop(*there, SIDE, IMAGENET_MEAN_PIXEL)))
