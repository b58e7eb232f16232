"""Native dense CRF: the float64 law to float32's precision, the same bits for any threads, and pydensecrf's labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.ops.dense_crf import dense_crf, native, probabilities_from_labels

COCO_MINI = Path(os.environ.get("CPN_TEST_DATA", "no test data")) / "coco_mini"

pytestmark = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def scene(height: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth colour regions with noise, uint8 [1, H, W, 3], and probabilities that know little of them."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (6, 6, 0)) * 600 + 120
    image = np.clip(field + rng.normal(size=field.shape) * 6, 0, 255).astype(np.uint8)
    scores = ndimage.gaussian_filter(rng.normal(size=(classes, height, width)), (0, 3, 3)) * 12
    return torch.from_numpy(image)[None], torch.from_numpy(scores).softmax(0).float()[None]


@pytest.mark.parametrize(
    ("height", "width", "classes", "options"),
    [
        (60, 80, 21, {}),
        (60, 80, 2, {"bilateral_sxy": 32.0}),
        (33, 65, 8, {"gaussian_sxy": (2.0, 5.0), "bilateral_sxy": (9.0, 20.0), "bilateral_srgb": (5.0, 9.0, 30.0)}),
        (40, 31, 9, {"gaussian_compat": 0.0}),
        (40, 32, 17, {"bilateral_compat": 0.0}),
        (31, 33, 30, {"bilateral_srgb": 3.0}),
        (24, 40, 81, {}),
        (5, 300, 32, {"bilateral_sxy": 1.0, "bilateral_srgb": 1.0}),
        (8, 9, 256, {}),
        (1, 1, 3, {}),
        (70, 2, 33, {}),
    ],
)
def test_against_the_law_in_float64(height: int, width: int, classes: int, options: dict[str, float]) -> None:
    image, probabilities = scene(height, width, classes)
    law = dense_crf(image, probabilities.double(), 10, **options, backend="reference")  # type: ignore[arg-type]
    found = dense_crf(image, probabilities, 10, **options, backend="native")  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), law, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["noise", "constant", "black"])
def test_images_without_smooth_regions(kind: str) -> None:
    image, probabilities = scene(40, 50, 5)
    if kind == "noise":
        image = torch.randint(0, 256, image.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    else:
        image = torch.full_like(image, 0 if kind == "black" else 77)
    law = dense_crf(image, probabilities.double(), 10, backend="reference")
    torch.testing.assert_close(dense_crf(image, probabilities, 10, backend="native").double(), law, atol=1e-5, rtol=0)


def test_a_hash_table_that_grows() -> None:
    """Noise and small standard deviations: nearly every corner is a lattice point of its own."""
    image = torch.randint(0, 256, (1, 60, 80, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    lattice = native.Lattice(image[0], (5.0, 5.0, 2.0, 2.0, 2.0), 1.0, 1, (60, 80))
    assert lattice.struct.points > 20_000
    probabilities = scene(60, 80, 3)[1]
    options = {"bilateral_sxy": 5.0, "bilateral_srgb": 2.0}
    law = dense_crf(image, probabilities.double(), 3, **options, backend="reference")  # type: ignore[arg-type]
    found = dense_crf(image, probabilities, 3, **options, backend="native")  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), law, atol=1e-5, rtol=0)


@pytest.mark.parametrize("classes", [3, 21, 40])
def test_any_number_of_threads_gives_the_same_bits(classes: int) -> None:
    pairs = [scene(45, 70, classes, seed) for seed in range(3)]
    images, probabilities = (torch.cat(each) for each in zip(*pairs, strict=True))
    torch.set_num_threads(1)
    one = dense_crf(images, probabilities, 4, backend="native")
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(dense_crf(images, probabilities, 4, backend="native"), one)
        assert torch.equal(dense_crf(images[2:], probabilities[2:], 4, backend="native"), one[2:])


def test_more_threads_than_pixels() -> None:
    image, probabilities = torch.zeros(1, 1, 2, 3, dtype=torch.uint8), torch.rand(1, 2, 1, 2)
    torch.set_num_threads(1)
    one = dense_crf(image, probabilities, 3, backend="native")
    torch.set_num_threads(8)
    assert torch.equal(dense_crf(image, probabilities, 3, backend="native"), one)


def test_any_memory_layout() -> None:
    pairs = [scene(40, 50, 5, seed) for seed in range(2)]
    images, probabilities = (torch.cat(each) for each in zip(*pairs, strict=True))
    expected = dense_crf(images, probabilities, backend="native")
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    last = probabilities.contiguous(memory_format=torch.channels_last)
    assert not planar.is_contiguous() and not last.is_contiguous()
    assert torch.equal(dense_crf(planar, last, backend="native"), expected)
    assert torch.equal(
        dense_crf(images.flip(2).contiguous().flip(2), probabilities[:, :, :, ::1], backend="native"), expected
    )


def test_arguments_stay_as_they_were() -> None:
    image, probabilities = scene(20, 30, 4)
    before = image.clone(), probabilities.clone()
    dense_crf(image, probabilities, backend="native")
    assert torch.equal(image, before[0]) and torch.equal(probabilities, before[1])


def test_compiles_as_one_graph() -> None:
    image, probabilities = scene(20, 30, 4)
    log_p = probabilities.log()
    kernels = ([3.0, 3.0], [80.0, 80.0, 13.0, 13.0, 13.0], 3.0, 10.0)
    torch.library.opcheck(native.dense_crf, (image, log_p, 2, *kernels))


def test_c_interface_refuses_what_is_out_of_range() -> None:
    library = native._functions()
    memory = torch.empty(1 << 16, dtype=torch.uint8)
    out = torch.zeros(3, 2, 2)
    arguments = (out.data_ptr(), 2, 2, 3, 1, None, 0, out.data_ptr())
    assert library.cpn_dense_crf_cpu(*arguments, 1, memory.data_ptr(), 8) == 2
    assert library.cpn_dense_crf_cpu(*arguments, 0, memory.data_ptr(), len(memory)) == 1
    assert library.cpn_dense_crf_cpu_workspace(2, 2, 257, None, 0) == -1
    assert library.cpn_dense_crf_cpu_workspace(2, 2, 3, None, 3) == -1


def photographs(count: int) -> list[tuple[str, Tensor, Tensor]]:
    """Every so many of coco_mini: name, image, and probabilities from its mask, smoothed and with noise."""
    names = sorted(path.stem for path in (COCO_MINI / "JPEGImages").glob("*.jpg"))
    found = []
    for name in names[:: len(names) // count][:count]:
        image = np.array(Image.open(COCO_MINI / "JPEGImages" / f"{name}.jpg").convert("RGB"))
        mask = np.array(Image.open(COCO_MINI / "SegmentationClass" / f"{name}.png"))
        mask[mask == 255] = 0
        rng = np.random.default_rng(0)
        scores = 4 * ndimage.gaussian_filter(np.eye(21, dtype=np.float32)[mask], (8, 8, 0))
        scores += 8 * ndimage.gaussian_filter(rng.normal(size=scores.shape).astype(np.float32), (3, 3, 0))
        probabilities = torch.from_numpy(scores).permute(2, 0, 1).softmax(0)
        found.append((name, torch.from_numpy(image), probabilities.contiguous()))
    return found


def peer_crf(image: Tensor, energy: np.ndarray, bilateral_sxy: float, iterations: int = 10) -> Tensor:
    """pydensecrf's probabilities [C, H, W] from unary energies [C, H * W]."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    height, width, _ = image.shape
    model = densecrf.DenseCRF2D(width, height, len(energy))
    model.setUnaryEnergy(np.ascontiguousarray(energy, np.float32))
    model.addPairwiseGaussian(sxy=3, compat=3)
    model.addPairwiseBilateral(sxy=bilateral_sxy, srgb=13, rgbim=image.contiguous().numpy(), compat=10)
    return torch.from_numpy(np.array(model.inference(iterations))).view(len(energy), height, width)


@pytest.mark.slow
@pytest.mark.data("coco_mini")
@pytest.mark.parametrize("bilateral_sxy", [80.0, 32.0])
def test_labels_are_those_of_pydensecrf(bilateral_sxy: float) -> None:
    utils = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed")
    for name, image, probabilities in photographs(4):
        theirs = peer_crf(image, utils.unary_from_softmax(probabilities.numpy()), bilateral_sxy)
        ours = dense_crf(image[None], probabilities[None], 10, bilateral_sxy=bilateral_sxy, backend="native")[0]
        same = float((ours.argmax(0) == theirs.argmax(0)).float().mean())
        print(f"{name}: {same:.5f} equal, {float((ours - theirs).abs().max()):.1e}")
        assert same >= 0.999, name


def test_hard_labels_are_those_of_pydensecrf() -> None:
    utils = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed")
    image, probabilities = scene(60, 80, 5)
    labels = probabilities.argmax(1).to(torch.uint8)
    labels[:, 20:30, 20:50] = 0
    hard = labels[0].long().numpy()
    for zero_unsure, classes in ((False, 5), (True, 4)):
        theirs = peer_crf(image[0], utils.unary_from_labels(hard, classes, 0.7, zero_unsure), 80.0)
        unary = probabilities_from_labels(labels, classes, 0.7, zero_unsure=zero_unsure)
        ours = dense_crf(image, unary, 10, backend="native")[0]
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
