"""Superpixels of every backend: labels without gaps, connected, near the asked count, following edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data

from cpn_kernels import native_library
from cpn_kernels.ops.superpixels import Backend, backend_version, resolve_backend, superpixels
from cpn_kernels.ops.superpixels.reference import relabel

COUNT_TOLERANCE = {"native": 0.1, "skimage": 0.25}


@pytest.fixture(params=["native", "skimage"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "native" and not native_library.available():
        pytest.skip(native_library.load()[1])
    return request.param


def textured(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """A smooth random image with a sharp coloured square in it."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    image = ndimage.gaussian_filter(noise, (6, 6, 0)) * 400 + 90
    image[24:72, 40:88] += (90, -40, 30)
    return np.clip(image, 0, 255).astype(np.uint8)


def assert_gapless_and_connected(labels: np.ndarray) -> int:
    count = int(labels.max()) + 1
    assert np.array_equal(np.unique(labels), np.arange(count))
    for label in range(count):
        assert ndimage.label(labels == label)[1] == 1
    return count


@pytest.mark.parametrize("segments", [2, 20, 60])
def test_labels_are_gapless_connected_and_near_the_asked_count(segments: int, backend: Backend) -> None:
    images = torch.from_numpy(np.stack([textured(seed=0), textured(seed=1)]))
    labels = superpixels(images, segments, backend=backend)
    assert labels.dtype == torch.int32
    assert labels.shape == images.shape[:3]
    for one in labels.numpy():
        assert abs(assert_gapless_and_connected(one) - segments) <= max(1, COUNT_TOLERANCE[backend] * segments)


def test_superpixels_follow_a_sharp_edge(backend: Backend) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 37:] = (250, 20, 20)
    labels = superpixels(torch.from_numpy(image)[None], 16, backend=backend)[0].numpy()
    left, right = set(np.unique(labels[:, :37])), set(np.unique(labels[:, 37:]))
    assert not left & right
    # A grid of the same count cuts across the edge, so the colour was used.
    assert len(left) >= 2 and len(right) >= 2


def test_compactness_counts(backend: Backend) -> None:
    image = torch.from_numpy(textured())[None]

    def boundary(compactness: float) -> int:
        labels = superpixels(image, 40, compactness, backend)[0].numpy()
        return int((labels[1:] != labels[:-1]).sum() + (labels[:, 1:] != labels[:, :-1]).sum())

    assert boundary(200.0) < boundary(10.0) < boundary(0.5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 3), (33, 50)])
def test_tiny_and_constant_images(shape: tuple[int, int], backend: Backend) -> None:
    for image in (np.full((*shape, 3), 130, np.uint8), np.zeros((*shape, 3), np.uint8)):
        assert_gapless_and_connected(superpixels(torch.from_numpy(image)[None], 30, backend=backend)[0].numpy())


def test_one_segment_and_no_image(backend: Backend) -> None:
    assert superpixels(torch.from_numpy(textured())[None], 1, backend=backend).max() == 0
    assert superpixels(torch.zeros(0, 8, 9, 3, dtype=torch.uint8), 5, backend=backend).shape == (0, 8, 9)


def test_same_image_same_labels_in_any_batch(backend: Backend) -> None:
    first, second = torch.from_numpy(textured(seed=0)), torch.from_numpy(textured(seed=1))
    batch = superpixels(torch.stack([first, second]), 30, backend=backend)
    assert torch.equal(batch[1], superpixels(second[None], 30, backend=backend)[0])


def test_relabel_keeps_order() -> None:
    assert relabel(np.array([[4, 4, 9], [0, 9, 7]])).tolist() == [[1, 1, 3], [0, 3, 2]]


def test_count_on_photographs(backend: Backend) -> None:
    counts = []
    for photograph in (data.astronaut, data.chelsea, data.coffee, data.rocket):
        pixels = np.ascontiguousarray(photograph()[::2, ::2])
        counts.append(int(superpixels(torch.from_numpy(pixels)[None], 200, backend=backend).max()) + 1)
    assert abs(np.mean(counts) - 200) < 20, counts
    slack = 20 if backend == "native" else 60
    assert all(abs(count - 200) <= slack for count in counts), counts


def test_auto_is_native_where_it_is_there() -> None:
    expected = "native" if native_library.available() else "skimage"
    assert resolve_backend("auto") == expected
    image = torch.from_numpy(textured())[None]
    assert torch.equal(superpixels(image, 20), superpixels(image, 20, backend=expected))
    assert backend_version("auto").split()[0] == expected
    assert backend_version("skimage").startswith("skimage 0.")


def test_fast_slic() -> None:
    pytest.importorskip("fast_slic", reason="fast-slic is optional")
    labels = superpixels(torch.from_numpy(textured())[None], 40, backend="fast-slic")[0].numpy()
    count = int(labels.max()) + 1
    assert np.array_equal(np.unique(labels), np.arange(count))


def test_bad_input_is_named() -> None:
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"torch.float32.*expected uint8 \[B, H, W, 3\]"):
        superpixels(image.float(), 4)
    with pytest.raises(ValueError, match="segments is 0"):
        superpixels(image, 0)
    with pytest.raises(ValueError, match="backend is 'seeds'"):
        superpixels(image, 4, backend="seeds")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend is 'seeds'"):
        backend_version("seeds")  # type: ignore[arg-type]
