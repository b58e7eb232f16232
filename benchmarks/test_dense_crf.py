"""Native dense CRF against pydensecrf, or where that is missing the reference, on one thread; the GPU's against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.measuring import device_ms
from cpn_fast.data.loading.random import generator
from cpn_kernels import native_library
from cpn_kernels.ops.dense_crf import AFFINITY_LABELS, SEGMENTATION, Settings, dense_crf, reference

HEIGHT, WIDTH, CLASSES = 375, 500, 21

pytestmark = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A generated scene with sensor noise, uint8 [H, W, 3], and unsure probabilities of its classes, [C, H, W]."""
    from cpn_fast.data.sources.demo_scenes import paint_scene

    painted = paint_scene(generator(0, 0, "benchmark", "scene"))
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(painted.image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    image = np.clip(np.array(pixels, np.float64) + rng.normal(scale=5, size=(HEIGHT, WIDTH, 3)), 0, 255)
    mask = np.array(Image.fromarray(painted.mask).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))
    scores = 4 * ndimage.gaussian_filter(np.eye(CLASSES)[mask % CLASSES], (8, 8, 0))
    scores += 8 * ndimage.gaussian_filter(rng.normal(size=scores.shape), (3, 3, 0))
    probabilities = torch.from_numpy(scores).permute(2, 0, 1).softmax(0).float()
    return image.astype(np.uint8), probabilities.contiguous().numpy()


def native(image: np.ndarray, probabilities: np.ndarray, settings: Settings) -> np.ndarray:
    given = torch.from_numpy(image)[None], torch.from_numpy(probabilities)[None]
    return dense_crf(*given, **asdict(settings), backend="native")[0].numpy()


def check_labels(ours: np.ndarray, theirs: np.ndarray, before: np.ndarray) -> None:
    """99.5% of the labels are equal, while the CRF changed more than that."""
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.995
    assert (theirs.argmax(0) == before.argmax(0)).mean() < 0.99


@pytest.mark.parametrize("settings", [AFFINITY_LABELS, SEGMENTATION], ids=["affinity_labels", "segmentation"])
def test_native_against_pydensecrf(against: Callable[..., float], settings: Settings) -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is optional")
    image, probabilities = scene()

    def peer() -> np.ndarray:
        model = densecrf.DenseCRF2D(WIDTH, HEIGHT, CLASSES)
        model.setUnaryEnergy(-np.log(np.clip(probabilities, 1e-5, 1)).reshape(CLASSES, -1))
        model.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
        deviations = {"sxy": settings.bilateral_sxy, "srgb": settings.bilateral_srgb}
        model.addPairwiseBilateral(**deviations, rgbim=image, compat=settings.bilateral_compat)
        return np.array(model.inference(settings.iterations)).reshape(probabilities.shape)

    against(
        candidate=lambda: native(image, probabilities, settings),
        peer=peer,
        agree=lambda: check_labels(native(image, probabilities, settings), peer(), probabilities),
        items=1,
    )


def test_native_against_the_reference(against: Callable[..., float]) -> None:
    image, probabilities = scene()
    given = torch.from_numpy(image)[None], torch.from_numpy(probabilities)[None]

    def peer() -> np.ndarray:
        return dense_crf(*given, **asdict(AFFINITY_LABELS), backend="reference")[0].numpy()

    against(
        candidate=lambda: native(image, probabilities, AFFINITY_LABELS),
        peer=peer,
        agree=lambda: check_labels(native(image, probabilities, AFFINITY_LABELS), peer(), probabilities),
        items=1,
    )


@pytest.mark.gpu
def test_dense_crf_on_the_gpu_against_one_thread(against: Callable[..., float], keep: Callable[..., None]) -> None:
    """The lattice included, which is built on the GPU from the image that lies there; the mean field also alone."""
    from cpn_kernels.ops.dense_crf import launch

    image, probabilities = scene()
    given = torch.from_numpy(image)[None].cuda(), torch.from_numpy(probabilities)[None].cuda()

    def on_gpu() -> torch.Tensor:
        return dense_crf(*given, **asdict(AFFINITY_LABELS), backend="triton")

    against(
        candidate=on_gpu,
        peer=lambda: native(image, probabilities, AFFINITY_LABELS),
        agree=lambda: check_labels(
            on_gpu()[0].cpu().numpy(), native(image, probabilities, AFFINITY_LABELS), probabilities
        ),
        items=1,
    )
    log_probabilities = given[1][0].flatten(1).T.clamp(1e-5, 1).log()
    filters = [
        launch.Filter(reference.features(given[0][0], deviations), compat)
        for deviations, compat in (([3.0, 3.0], 3.0), ([80.0, 80.0, 13.0, 13.0, 13.0], 10.0))
    ]
    keep(mean_field_device_ms=device_ms(lambda: launch.mean_field(log_probabilities, 10, filters)))
