"""Dense CRF: against the exact Gaussian filter, and the law, the edges and the errors that hold for every backend."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.ops.dense_crf import (
    AFFINITY_LABELS,
    SEGMENTATION,
    Settings,
    _resolve,
    dense_crf,
    native,
    probabilities_from_labels,
    reference,
)

HAS_NATIVE = native_library.available()
needs_native = pytest.mark.skipif(not HAS_NATIVE, reason=native_library.load()[1] or "there")
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


class OnGpu:
    """What the choice of a backend looks at of probabilities on a GPU, on a machine without one."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype, self.device, self.is_cuda = shape, dtype, "cuda:0", True

    def numel(self) -> int:
        return math.prod(self.shape)


def scene(height: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth colour regions with noise, uint8 [1, H, W, 3], and unsure probabilities that follow them."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (6, 6, 0)) * 600 + 120
    image = np.clip(field + rng.normal(size=field.shape) * 6, 0, 255).astype(np.uint8)
    scores = ndimage.gaussian_filter(rng.normal(size=(classes, height, width)), (0, 3, 3)) * 8
    scores += 0.02 * field[..., 0] * rng.normal(size=(classes, 1, 1))
    return torch.from_numpy(image)[None], torch.from_numpy(scores).softmax(0).float()[None]


def exact_filter(features: Tensor, values: Tensor) -> Tensor:
    """The Gaussian filter itself, pair by pair, normalised symmetrically; features [n, D], values [n, C]."""
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    norm = kernel.sum(1).rsqrt()[:, None]
    return norm * (kernel @ (norm * values))


def exact_crf(image: Tensor, probabilities: Tensor, settings: Settings) -> Tensor:
    """Mean field with the exact filter, written out once more; image [H, W, 3], probabilities [C, H, W]."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    place = torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1))
    colour = image.reshape(-1, 3).double() / settings.bilateral_srgb
    log_p = probabilities.double().flatten(1).T.clamp(1e-5, 1).log()
    q = log_p.exp() / log_p.exp().sum(1, keepdim=True)
    for _ in range(settings.iterations):
        near = exact_filter(place / settings.gaussian_sxy, q) * settings.gaussian_compat
        alike = exact_filter(torch.cat([place / settings.bilateral_sxy, colour], 1), q) * settings.bilateral_compat
        q = (log_p + near + alike).softmax(1)
    return q.T.reshape(probabilities.shape)


@pytest.mark.parametrize(("deviations", "tolerance"), [((3.0, 3.0), 0.1), ((30.0, 30.0, 40.0, 40.0, 40.0), 0.3)])
def test_the_lattice_approximates_the_gaussian(deviations: tuple[float, ...], tolerance: float) -> None:
    """Normalised filters of a rough field: root mean square error over its spread; measured 0.046 and 0.157."""
    image, _ = scene(40, 50, 1, seed=3)
    values = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(40, 50)), 2)).reshape(-1, 1)
    features = reference.features(image[0], deviations)
    exact, found = exact_filter(features, values), reference.Lattice(features).normalised(values)
    error = ((found - exact) ** 2).mean().sqrt() / exact.std()
    print(f"relative error {float(error):.4f}")
    assert error < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [AFFINITY_LABELS, SEGMENTATION])
def test_labels_are_mostly_those_of_the_exact_crf(backend: str, settings: Settings) -> None:
    """Unaries so weak that the CRF decides; measured 0.902 and 0.955 equal, where it changed 0.45 and 0.43."""
    image, probabilities = scene(40, 50, 5, seed=1)
    exact = exact_crf(image[0], probabilities[0], settings)
    found = dense_crf(image, probabilities, **asdict(settings), backend=backend)[0]
    same = float((found.argmax(0) == exact.argmax(0)).float().mean())
    changed = float((probabilities[0].argmax(0) != exact.argmax(0)).float().mean())
    print(f"{same:.4f} of the labels equal, {changed:.4f} changed")
    assert changed > 0.4 and same > 0.85


def test_geometry_of_the_lattice() -> None:
    """Weights are barycentric: they sum to 1, none is negative, and the corners' mean is the pixel's own feature."""
    image, _ = scene(12, 17, 1)
    for deviations in ((3.0, 3.0), (20.0, 9.0, 13.0, 13.0, 13.0)):
        features = reference.features(image[0], deviations)
        lattice = reference.Lattice(features)
        torch.testing.assert_close(lattice.weights.sum(1), torch.ones(len(features), dtype=torch.float64))
        assert lattice.weights.min() >= -1e-12
        # A filter that only splats and slices leaves linear functions alone where the points carry their own values:
        # the least squares solution of weights @ points = features has no rest.
        splat = torch.zeros(len(features), lattice.neighbours.shape[1], dtype=torch.float64)
        splat.scatter_add_(1, lattice.points, lattice.weights)
        solution = torch.linalg.lstsq(splat, features, driver="gelsd").solution
        torch.testing.assert_close(splat @ solution, features, atol=1e-9, rtol=0)
        forth, back = lattice.neighbours[..., 0], lattice.neighbours[..., 1]
        here = torch.arange(forth.shape[1])
        for axis in range(len(forth)):
            there = forth[axis] < len(here)
            assert torch.equal(back[axis][forth[axis][there]], here[there]) and there.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_iteration_scales_to_one(backend: str) -> None:
    image, probabilities = scene(9, 11, 4)
    found = dense_crf(image, probabilities * 0.5, 0, backend=backend)
    torch.testing.assert_close(found, probabilities, atol=1e-5, rtol=1e-3)  # clip lifts what is below 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_kernels_the_unary_stays(backend: str) -> None:
    image, probabilities = scene(9, 11, 4)
    found = dense_crf(image, probabilities, 3, gaussian_compat=0, bilateral_compat=0, backend=backend)
    torch.testing.assert_close(found, dense_crf(image, probabilities, 0, backend=backend))
    one = dense_crf(image, probabilities, 3, bilateral_compat=0, backend=backend)
    grey = dense_crf(torch.zeros_like(image), probabilities, 3, bilateral_compat=0, backend=backend)
    assert torch.equal(one, grey) and not torch.equal(one, found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_tiny_images(backend: str, height: int, width: int) -> None:
    image = torch.arange(height * width * 3, dtype=torch.uint8).view(1, height, width, 3)
    probabilities = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).softmax(1)
    found = dense_crf(image, probabilities, 4, backend=backend)
    exact = exact_crf(image[0], probabilities[0], Settings(4))
    torch.testing.assert_close(found.sum(1), torch.ones(1, height, width))
    torch.testing.assert_close(found[0].double(), exact, atol=0.1, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_pixel_is_known_in_closed_form(backend: str) -> None:
    """Alone, a pixel gets its own probabilities back from a normalised filter."""
    probabilities = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1)
    expected, log_p = probabilities.double(), probabilities.double().log()
    for _ in range(5):
        expected = (log_p + (3 + 10) * expected).softmax(1)
    found = dense_crf(torch.full((1, 1, 1, 3), 90, dtype=torch.uint8), probabilities, 5, backend=backend)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_class_and_ties(backend: str) -> None:
    image, _ = scene(10, 13, 2)
    assert torch.equal(dense_crf(image, torch.rand(1, 1, 10, 13), backend=backend), torch.ones(1, 1, 10, 13))
    tied = dense_crf(image, torch.full((1, 4, 10, 13), 0.25), backend=backend)
    assert torch.equal(tied, torch.full_like(tied, 0.25))
    equal = torch.full((1, 3, 10, 13), 0.4)
    equal[:, 2] = 0.2
    found = dense_crf(image, equal, backend=backend)
    assert torch.equal(found[:, 0], found[:, 1]) and (found[:, 2] < 0.2).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_may_be_reordered(backend: str) -> None:
    image, probabilities = scene(15, 20, 11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    found = dense_crf(image, probabilities, 5, backend=backend)
    torch.testing.assert_close(dense_crf(image, probabilities[:, order], 5, backend=backend), found[:, order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays_visible(backend: str) -> None:
    image, probabilities = scene(30, 40, 3)
    probabilities[0, 1, 5, 7] = math.nan
    alone = dense_crf(image, probabilities, 0, backend=backend)
    assert alone.isnan().sum() == 3 and alone[0, :, 5, 7].isnan().all()
    found = dense_crf(image, probabilities, 2, bilateral_compat=0, backend=backend)
    assert found[0, :, 5, 7].isnan().all() and not found[0, :, 25:, 30:].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_come_back(backend: str, dtype: torch.dtype) -> None:
    image, probabilities = scene(12, 14, 3)
    found = dense_crf(image, probabilities.to(dtype), backend=backend)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), dense_crf(image, probabilities.to(dtype).float(), backend=backend), atol=1e-2, rtol=0
    )


def test_float64_is_computed_in_float64() -> None:
    image, probabilities = scene(12, 14, 3)
    found = dense_crf(image, probabilities.double())
    assert not torch.equal(found, found.float().double())
    assert torch.equal(found, dense_crf(image, probabilities.double(), backend="reference"))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
def test_cuda_tensors(backend: str) -> None:
    image, probabilities = scene(30, 40, 21)
    found = dense_crf(image.cuda(), probabilities.cuda(), 5, backend=backend)
    assert found.is_cuda
    law = dense_crf(image, probabilities.double(), 5, backend="reference")
    torch.testing.assert_close(found.cpu().double(), law, atol=1e-5, rtol=0)


def test_empty_batches() -> None:
    assert dense_crf(torch.zeros(0, 4, 5, 3, dtype=torch.uint8), torch.zeros(0, 2, 4, 5)).shape == (0, 2, 4, 5)
    assert dense_crf(torch.zeros(1, 0, 5, 3, dtype=torch.uint8), torch.zeros(1, 2, 0, 5)).shape == (1, 2, 0, 5)


def test_probabilities_that_require_a_gradient() -> None:
    image, probabilities = scene(6, 6, 2)
    assert not dense_crf(image, probabilities.requires_grad_(), 1).requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(1, 4, 5, 3)}, "images are torch.float32"),
        ({"images": torch.zeros(1, 3, 4, 5, dtype=torch.uint8)}, "images are torch.uint8"),
        ({"probabilities": torch.zeros(1, 2, 5, 4)}, r"probabilities are \(1, 2, 5, 4\)"),
        ({"probabilities": torch.zeros(2, 2, 4, 5)}, r"expected \[1, at least 1, 4, 5\]"),
        ({"probabilities": torch.zeros(1, 0, 4, 5)}, "at least 1"),
        ({"probabilities": torch.zeros(1, 2, 4, 5, dtype=torch.int64)}, "floating point"),
        ({"iterations": -1}, "iterations is -1"),
        ({"iterations": 1.5}, "iterations is 1.5"),
        ({"gaussian_sxy": 0.0}, "gaussian_sxy is 0.0"),
        ({"gaussian_sxy": (1.0, 2.0, 3.0)}, "or 2 of them"),
        ({"bilateral_sxy": math.nan}, "bilateral_sxy is nan"),
        ({"bilateral_srgb": (1.0, -1.0, 3.0)}, "bilateral_srgb is"),
        ({"bilateral_compat": -1.0}, "bilateral_compat is -1.0"),
        ({"gaussian_compat": math.inf}, "gaussian_compat is inf"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"bilateral_srgb": 1e-6, "backend": "reference"}, "too small for"),
        pytest.param({"bilateral_srgb": 1e-6, "backend": "native"}, "too small for", marks=needs_native),
        ({"probabilities": torch.zeros(1, 257, 4, 5), "backend": "native"}, "257 classes; the native"),
        ({"probabilities": torch.zeros(1, 257, 4, 5), "backend": "triton"}, "257 classes; the triton"),
        ({"backend": "triton"}, "on cpu; the triton backend takes float32 or half precision"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    noise = torch.randint(0, 256, (1, 4, 5, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    given: dict[str, object] = {"images": noise, "probabilities": torch.full((1, 2, 4, 5), 0.5)}
    with pytest.raises(ValueError, match=message):
        dense_crf(**(given | arguments))  # type: ignore[arg-type]


def test_who_takes_probabilities_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = OnGpu((2, 21, 375, 500))
    assert _resolve("auto", ordinary) == "reference"  # without Triton, or on an older GPU
    monkeypatch.setattr("cpn_kernels.backend.triton_ready", lambda: True)
    for found in (ordinary, OnGpu((1, 256, 9, 9), torch.bfloat16), OnGpu((1, 1, 1, (2**31 - 128) // 6))):
        assert _resolve("auto", found) == _resolve("triton", found) == "triton"
    for other in (OnGpu((1, 3, 9, 9), torch.float64), OnGpu((1, 1, 2, 2**31 // 12)), OnGpu((1, 257, 9, 9))):
        assert _resolve("auto", other) == "reference"
        with pytest.raises(ValueError, match="the triton backend takes"):
            _resolve("triton", other)
    assert _resolve("auto", torch.zeros(1, 2, 3, 3)) == ("native" if HAS_NATIVE else "reference")


def test_presets_are_those_of_the_method() -> None:
    assert asdict(AFFINITY_LABELS) == {
        "iterations": 10,
        "gaussian_sxy": 3,
        "gaussian_compat": 3,
        "bilateral_sxy": 80,
        "bilateral_srgb": 13,
        "bilateral_compat": 10,
    }
    assert asdict(SEGMENTATION) == asdict(AFFINITY_LABELS) | {"bilateral_sxy": 32}


def test_more_classes_than_the_library_takes_use_the_reference() -> None:
    probabilities = torch.rand(1, native.MAX_CLASSES + 1, 4, 5)
    image = torch.zeros(1, 4, 5, 3, dtype=torch.uint8)
    torch.testing.assert_close(dense_crf(image, probabilities, 1).sum(1), torch.ones(1, 4, 5))


def test_labels_become_probabilities() -> None:
    labels = torch.tensor([[[0, 2, 255], [1, 1, 3]]], dtype=torch.uint8)
    found = probabilities_from_labels(labels, 4, 0.7)
    for y in range(2):
        for x in range(3):
            label = int(labels[0, y, x])
            expected = [0.25] * 4 if label == 255 else [0.7 if c == label else 0.1 for c in range(4)]
            torch.testing.assert_close(found[0, :, y, x], torch.tensor(expected))


def test_zero_may_mean_unsure() -> None:
    labels = torch.tensor([[[0, 1, 3, 255]]])
    found = probabilities_from_labels(labels, 3, 0.5, zero_unsure=True)[0, :, 0].T
    expected = torch.tensor([[1 / 3] * 3, [0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [1 / 3] * 3])
    torch.testing.assert_close(found, expected)
    assert probabilities_from_labels(torch.zeros(1, 1, 1, dtype=torch.int32), 1).item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.tensor([[[4]]]), {}, r"labels hold 4; expected 0..2 or 255"),
        (torch.tensor([[[-1]]]), {}, r"labels hold -1"),
        (torch.tensor([[[4]]]), {"zero_unsure": True}, r"labels hold 4; expected 1..3 or 255"),
        (torch.tensor([[[-1]]]), {"zero_unsure": True}, r"labels hold -1"),
        (torch.tensor([[[255]]]), {"void": None}, r"labels hold 255; expected 0..2$"),
        (torch.tensor([[0]]), {}, r"expected integers \[B, H, W\]"),
        (torch.tensor([[[0.0]]]), {}, "labels are torch.float32"),
        (torch.tensor([[[0]]]), {"gt_prob": 1.0}, "gt_prob 1.0"),
    ],
)
def test_bad_labels(labels: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probabilities_from_labels(labels, 3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("deviations", [(3.0, 3.0), (9.0, 9.0, 13.0, 13.0, 13.0)], ids=len)
def test_a_lattice_of_several_images_is_theirs_side_by_side(deviations: tuple[float, ...]) -> None:
    """Also where an image's colours span far more than another's, so that all keys differ from those of one alone."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 6, 7, 3), generator=generator, dtype=torch.uint8)
    images[1] = 30
    images[2] //= 4
    each = [reference.Lattice(reference.features(image, deviations)) for image in images]
    both = reference.Lattice(torch.cat([reference.features(image, deviations) for image in images]), 3)
    counts = [lattice.neighbours.shape[1] for lattice in each]
    assert both.neighbours.shape[1] == sum(counts) and len({*counts}) > 1 - (len(deviations) == 2)
    values = torch.rand(3 * 42, 4, generator=generator, dtype=torch.float64)
    alone = torch.cat([lattice.normalised(part) for lattice, part in zip(each, values.split(42), strict=True)])
    torch.testing.assert_close(both.normalised(values), alone, rtol=0, atol=1e-12)
    shift = torch.tensor([0, counts[0], counts[0] + counts[1]]).repeat_interleave(42)[:, None]
    assert torch.equal(both.points, torch.cat([lattice.points for lattice in each]) + shift)
