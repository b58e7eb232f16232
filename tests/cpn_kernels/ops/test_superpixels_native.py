"""Native SLIC: bit for bit what a second writing in numpy gives, for any thread count, batch and memory layout."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from cpn_kernels import native_library
from cpn_kernels.ops.superpixels import native, superpixels

COCO_MINI = Path(os.environ.get("CPN_TEST_DATA", "no test data")) / "coco_mini"

pytestmark = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")


def load_oracle() -> Callable[..., np.ndarray]:
    spec = importlib.util.spec_from_file_location("slic_oracle", Path(__file__).with_name("slic_oracle.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = load_oracle()


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def picture(kind: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "constant":
        return np.full((height, width, 3), 77, np.uint8)
    if kind == "corner":  # the region of pixel 0 is too small to stay
        image = np.full((height, width, 3), 90, np.uint8)
        image[0, 0] = (255, 0, 0)
        return image
    smooth = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (4, 4, 0)) * 300 + 100
    return np.clip(smooth + rng.normal(size=smooth.shape) * 8, 0, 255).astype(np.uint8)


def slic(image: np.ndarray, segments: int, compactness: float = 10.0) -> np.ndarray:
    return superpixels(torch.from_numpy(image)[None], segments, compactness, "native")[0].numpy()


@pytest.mark.parametrize("kind", ["texture", "noise", "constant", "corner"])
@pytest.mark.parametrize(
    ("height", "width", "segments", "compactness"),
    [
        (96, 128, 40, 10.0),
        (61, 77, 7, 10.0),
        (200, 160, 12, 3.0),
        (50, 40, 1, 1.0),
        (33, 34, 200, 20.0),
        (40, 30, 5, 0.01),
        (300, 2, 5, 10.0),
        (1, 40, 30, 10.0),
        (7, 3, 30, 10.0),
        (30, 30, 9, 1e6),
        (1, 1, 1, 10.0),
    ],
)
def test_against_numpy(kind: str, height: int, width: int, segments: int, compactness: float) -> None:
    image = picture(kind, height, width)
    assert np.array_equal(slic(image, segments, compactness), oracle.slic(image, segments, compactness))


def test_the_oracle_colours_are_cielab() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    found = oracle.lab_eighths(colours) / 8 - np.array([0, 128, 128])
    error = np.abs(found - rgb2lab(colours))
    assert error.max() < 0.6 and error.mean() < 0.04  # in units of L, a and b; an eighth of one is the resolution
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    assert (oracle.lab_eighths(greys)[:, 1:] == 8 * 128).all()


def test_any_number_of_threads_gives_the_same_labels() -> None:
    images = torch.from_numpy(np.stack([picture("texture", 90, 120, seed) for seed in range(3)]))
    torch.set_num_threads(1)
    one = superpixels(images, 30, backend="native")
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(superpixels(images, 30, backend="native"), one)
        assert torch.equal(superpixels(images[2:], 30, backend="native"), one[2:])


def test_any_memory_layout() -> None:
    images = torch.from_numpy(np.stack([picture("texture", 40, 60, seed) for seed in range(2)]))
    expected = superpixels(images, 12, backend="native")
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not planar.is_contiguous()
    assert torch.equal(superpixels(planar, 12, backend="native"), expected)
    wide = torch.zeros(2, 40, 90, 3, dtype=torch.uint8)
    wide[:, :, 10:70] = images
    assert torch.equal(superpixels(wide[:, :, 10:70], 12, backend="native"), expected)


def test_labels_are_the_ones_of_this_version() -> None:
    """Cached maps are keyed by the version: whoever changes the labels must raise it (in cpn_native.cpp)."""
    y, x = np.mgrid[:120, :160]
    image = np.stack([(x * y) % 251, (3 * x + y) % 253, (x // 9 * 40 + y // 7 * 25) % 256], -1).astype(np.uint8)
    digest = hashlib.sha256(np.ascontiguousarray(slic(image, 50), "<i4").tobytes()).hexdigest()[:16]
    assert (native.version(), digest) == (1, "6138b88231dae861")


@pytest.mark.slow
def test_opcheck_and_compile() -> None:
    image = torch.from_numpy(picture("texture", 40, 50))[None]
    torch.library.opcheck(torch.ops.cpn.superpixels_native.default, (image, 9, 10.0))
    compiled = torch.compile(lambda i: superpixels(i, 9, backend="native") + 1, fullgraph=True)
    assert torch.equal(compiled(image) - 1, superpixels(image, 9, backend="native"))


def test_limits_are_named() -> None:
    with pytest.raises(ValueError, match=r"1 x 40000 pixels.*32767"):
        superpixels(torch.zeros(1, 1, 40000, 3, dtype=torch.uint8), 4, backend="native")
    for compactness in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="compactness is"):
            superpixels(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), 4, compactness, "native")


def test_a_caller_with_too_little_memory_is_refused() -> None:
    library = native._functions()
    image, labels = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.full((8, 8), -7, dtype=torch.int32)
    memory, address = native_library.workspace(100, image.device)
    status = library.cpn_superpixels_cpu(image.data_ptr(), labels.data_ptr(), 1, 8, 8, 4, 10.0, 1, address, 100)
    with pytest.raises(RuntimeError, match="workspace is too small"):
        native_library.check(status, "superpixels")
    assert (labels == -7).all() and memory.numel() >= 100


def boundaries(labels: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def boundary_recall(labels: np.ndarray, truth: np.ndarray, tolerance: int = 2) -> float:
    """Share of the true boundary pixels within `tolerance` pixels (chessboard) of a segment boundary."""
    near = ndimage.binary_dilation(boundaries(labels), np.ones((2 * tolerance + 1,) * 2))
    true = boundaries(truth)
    return float((true & near).sum() / true.sum())


def undersegmentation_error(labels: np.ndarray, truth: np.ndarray) -> float:
    """Neubert and Protzel's: of every segment and object that overlap, the smaller of the parts inside and outside."""
    valid = truth != 255
    overlap = np.zeros((labels.max() + 1, 256), np.int64)
    np.add.at(overlap, (labels[valid], truth[valid]), 1)
    outside = overlap.sum(1, keepdims=True) - overlap
    return float(np.minimum(overlap, outside).sum() / valid.sum())


def test_the_measures_by_hand() -> None:
    truth = np.zeros((6, 20), np.uint8)
    truth[:, 10:] = 1
    halves = (np.arange(20) >= 10).astype(int)[None].repeat(6, 0)
    shifted = (np.arange(20) >= 12).astype(int)[None].repeat(6, 0)
    far = (np.arange(20) >= 15).astype(int)[None].repeat(6, 0)
    assert [boundary_recall(labels, truth) for labels in (halves, shifted, far)] == [1.0, 1.0, 0.0]
    assert undersegmentation_error(halves, truth) == 0.0
    assert undersegmentation_error(shifted, truth) == pytest.approx(2 * 2 * 6 / 120)


@pytest.mark.slow
@pytest.mark.data("coco_mini")
def test_quality_beside_the_published_packages() -> None:
    """On every 20th mask of coco_mini at 200 segments: no worse than skimage, and near fast-slic where it is there."""
    backends = ["native", "skimage"] + ["fast-slic"] * (importlib.util.find_spec("fast_slic") is not None)
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in backends}
    for path in sorted((COCO_MINI / "SegmentationClass").glob("*.png"))[::20]:
        with Image.open(path) as mask, Image.open(COCO_MINI / "JPEGImages" / f"{path.stem}.jpg") as photo:
            truth, image = np.array(mask), torch.from_numpy(np.array(photo.convert("RGB")))[None]
        if not boundaries(truth).any():
            continue
        for name in backends:
            labels = superpixels(image, 200, backend=name)[0].numpy()  # type: ignore[arg-type]
            count = int(labels.max()) + 1
            figures[name].append((boundary_recall(labels, truth), undersegmentation_error(labels, truth), count))
            assert name != "native" or abs(count - 200) <= 20
    means = {name: np.mean(rows, axis=0) for name, rows in figures.items()}
    assert means["native"][0] >= means["skimage"][0], means
    assert means["native"][1] <= means["skimage"][1], means
    if "fast-slic" in means:
        assert means["native"][0] >= means["fast-slic"][0] - 0.02, means
        assert means["native"][1] <= means["fast-slic"][1] + 0.01, means
