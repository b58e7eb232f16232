"""The dense CRF's kernels against the law in float64: tails, long and short sums, missing neighbours, guards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.ops.dense_crf import dense_crf, reference
from cpn_kernels.ops.dense_crf.limits import ROWS
from cpn_kernels.ops.dense_crf.op import dense_crf_op

KERNELS = ([3.0, 3.0], [80.0, 80.0, 13.0, 13.0, 13.0], 3.0, 10.0)

pytestmark = pytest.mark.usefixtures("kernels_only")


def scene(height: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth colour regions with noise, uint8 [1, H, W, 3], and probabilities that know little of them."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (6, 6, 0)) * 600 + 120
    image = np.clip(field + rng.normal(size=field.shape) * 6, 0, 255).astype(np.uint8)
    scores = ndimage.gaussian_filter(rng.normal(size=(classes, height, width)), (0, 3, 3)) * 12
    return torch.from_numpy(image)[None], torch.from_numpy(scores).softmax(0).float()[None]


def batch(height: int, width: int, classes: int, count: int) -> tuple[Tensor, Tensor]:
    images, probabilities = zip(*[scene(height, width, classes, seed) for seed in range(count)], strict=True)
    return torch.cat(images), torch.cat(probabilities)


def check(image: Tensor, probabilities: Tensor, device: torch.device, iterations: int = 2, **options: Any) -> Tensor:
    """Equal to the law, which is computed on the CPU; returns what was found."""
    law = dense_crf(image, probabilities.double(), iterations, **options, backend="reference")
    found = dense_crf(image.to(device), probabilities.to(device), iterations, **options).cpu()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), law, atol=1e-5, rtol=0)
    return found


@pytest.mark.parametrize(
    ("height", "width", "classes", "options"),
    [
        (13, 17, 21, {}),
        (17, 20, 2, {"bilateral_sxy": 32.0}),
        (11, 15, 8, {"gaussian_sxy": (2.0, 5.0), "bilateral_sxy": (9.0, 20.0), "bilateral_srgb": (5.0, 9.0, 30.0)}),
        (10, 13, 9, {"gaussian_compat": 0.0}),
        (10, 13, 17, {"bilateral_compat": 0.0}),
        (9, 10, 3, {"bilateral_compat": 0.0, "gaussian_compat": 0.0}),
        (7, 9, 40, {"bilateral_srgb": 3.0}),
        (2, 35, 33, {"bilateral_sxy": 1.0, "bilateral_srgb": 1.0}),
        (3, 4, 256, {}),
        (1, 1, 3, {}),
        (1, 50, 3, {}),
        (50, 1, 3, {}),
        (12, 14, 1, {}),
    ],
)
def test_against_the_law_in_float64(
    height: int, width: int, classes: int, options: dict[str, Any], device: torch.device
) -> None:
    check(*scene(height, width, classes), device, **options)


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_iterations(iterations: int, device: torch.device) -> None:
    check(*scene(7, 9, 21), device, iterations)


@pytest.mark.parametrize("pixels", [ROWS - 1, ROWS, ROWS + 1])
def test_tails_of_pixels(pixels: int, device: torch.device) -> None:
    check(*scene(1, pixels, 5), device, 1)


@pytest.mark.parametrize(("width", "flat", "levels"), [(19, 0, 1), (19, 12, 2), (33, 33, 3)])
def test_sums_of_all_sizes(width: int, flat: int, levels: int, device: torch.device) -> None:
    """Noise, where a lattice point owns few pixels, and columns of one colour, where one owns up to a thousand."""
    from cpn_kernels.ops.dense_crf.launch import Filter

    image, probabilities = scene(33, width, 3)
    image = torch.randint(0, 256, image.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    image[:, :, :flat] = 77
    check(image, probabilities, device, 1, bilateral_sxy=300.0, gaussian_compat=0)
    features = reference.features(image[0].to(device), [300.0, 300.0, 13.0, 13.0, 13.0])
    assert len(Filter(features, 1.0)._levels) == levels


@pytest.mark.parametrize("length", [1, 31, 32, 33, 1024, 1025])
def test_sums_at_the_ends_of_chunks(length: int, device: torch.device) -> None:
    """Every pixel has the same features, so that each corner of their simplex owns all of them."""
    from cpn_kernels.ops.dense_crf.launch import CHUNK, Filter

    features = torch.tensor([[0.3, 0.7]], dtype=torch.float64).expand(length, 2).contiguous()
    values = torch.rand(length, 4, generator=torch.Generator().manual_seed(length))
    found = Filter(features.to(device), 1.0)
    assert all(1 <= int(begins.diff().min()) <= int(begins.diff().max()) <= CHUNK for begins in found._levels)
    law = reference.Lattice(features)
    expected = (law.norm[:, None] * law.weights).T @ values.double()
    for _ in range(2):
        held = torch.zeros(len(expected), 4, dtype=torch.float64)
        held[law.points[0]] = expected
        for axis in law.neighbours:
            beside = torch.cat([held, held.new_zeros(1, 4)])[axis].sum(1)
            held = held + 0.5 * beside
        torch.testing.assert_close(found.spread(values.to(device)).cpu().double(), held, atol=1e-5, rtol=1e-6)


def test_images_of_a_batch_do_not_meet(device: torch.device) -> None:
    images, probabilities = batch(8, 13, 6, 3)
    found = check(images, probabilities, device)
    alone = [dense_crf(images[i : i + 1].to(device), probabilities[i : i + 1].to(device), 2).cpu() for i in range(3)]
    assert torch.equal(found, torch.cat(alone))


def test_images_are_taken_together_as_memory_allows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images by two: the same bits; and one by one where their points together are too many to number."""
    images, probabilities = batch(6, 7, 3, 3)
    from cpn_kernels.ops.dense_crf import launch

    taken: list[int] = []
    filter_of, most = launch.Filter, 3

    def watched(features: Tensor, compat: float, count: int) -> launch.Filter:
        taken.append(count)
        if count > most:
            raise ValueError("too many")
        return filter_of(features, compat, count)

    monkeypatch.setattr(launch, "Filter", watched)
    found = []
    for together, allowed, expected in ((3, 3, [3, 3]), (2, 3, [2, 2, 1, 1]), (3, 1, [3, 1, 1, 1, 1])):
        most = allowed
        monkeypatch.setattr(launch, "TOGETHER", together * 6 * 7 + 5)
        found.append(dense_crf(images.to(device), probabilities.to(device), 1).cpu())
        assert taken == expected  # that by place alone once for as many images, that by colour for each
        taken.clear()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_two_calls_give_the_same_bits(device: torch.device) -> None:
    image, probabilities = (x.to(device) for x in scene(12, 15, 21))
    first = dense_crf(image, probabilities, 2)
    assert torch.equal(dense_crf(image, probabilities, 2), first)


def test_one_class_and_ties(device: torch.device) -> None:
    image = scene(6, 7, 1)[0].to(device)
    one = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(dense_crf(image, one, 3), torch.ones_like(one))
    equal = torch.full((1, 3, 6, 7), 0.4, device=device)
    equal[:, 2] = 0.2
    found = dense_crf(image, equal, 3)
    assert torch.equal(found[:, 0], found[:, 1]) and (found[:, 2] < 0.2).all()


def test_not_a_number_stays_visible(device: torch.device) -> None:
    image, probabilities = scene(30, 40, 3)
    probabilities[0, 1, 5, 7] = math.nan
    alone = dense_crf(image.to(device), probabilities.to(device), 0).cpu()
    assert alone.isnan().sum() == 3 and alone[0, :, 5, 7].isnan().all()
    found = dense_crf(image.to(device), probabilities.to(device), 2, bilateral_compat=0).cpu()
    law = dense_crf(image, probabilities.double(), 2, bilateral_compat=0, backend="reference")
    assert torch.equal(found.isnan(), law.isnan()) and not found[0, :, 25:, 30:].isnan().any()
    torch.testing.assert_close(found.double(), law, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    image, probabilities = (x.to(device) for x in scene(7, 9, 3))
    found = dense_crf(image, probabilities.to(dtype), 2)
    assert found.dtype == dtype
    assert torch.equal(found, dense_crf(image, probabilities.to(dtype).float(), 2).to(dtype))


def test_any_memory_layout_and_the_input_as_it_was(device: torch.device) -> None:
    images, probabilities = (x.to(device) for x in batch(6, 9, 5, 2))
    expected, before = dense_crf(images, probabilities, 2), (images.clone(), probabilities.clone())
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    last = probabilities.contiguous(memory_format=torch.channels_last)
    assert not planar.is_contiguous() and not last.is_contiguous()
    assert torch.equal(dense_crf(planar, last, 2), expected)
    assert torch.equal(images, before[0]) and torch.equal(probabilities, before[1])


def test_columns_past_the_classes_take_no_part(device: torch.device) -> None:
    """Rows are padded; two classes that matter, with and without 200 that are next to nothing."""
    image, probabilities = (x.to(device) for x in scene(4, 6, 2))
    more = torch.cat([probabilities, torch.zeros(1, 200, 4, 6, device=device)], 1)
    found = dense_crf(image, more, 3, clip=1e-30)
    torch.testing.assert_close(found[:, :2], dense_crf(image, probabilities, 3, clip=1e-30), atol=1e-6, rtol=0)


def test_nothing_is_read_or_written_beyond_the_tensors(device: torch.device) -> None:
    """Each kernel at a tail, in longer memory: what is read past the tensors shows as NaN, what is written as no 7."""
    from cpn_kernels.ops.dense_crf import triton_kernel

    count, width, rows = 13, 4, 8
    guard = rows * width

    def guarded(values: Tensor, beyond: float) -> Tensor:
        held = torch.full((values.numel() + guard,), beyond, dtype=values.dtype)
        held[: values.numel()] = values.flatten()
        return held.to(device)

    source = guarded(torch.ones(count, width), math.nan)
    target = guarded(torch.full((count, width), math.nan), 7.0)
    begins = torch.arange(count + 1).int() // 2 * 2
    entries = guarded(torch.arange(count).int(), count), guarded(torch.ones(count), math.nan)
    for weighted in (True, False):
        triton_kernel.sum_kernel[(2,)](
            source, *entries, guarded(begins, 99), target, count, ROWS=rows, WIDTH=width, WEIGHTED=weighted
        )
        sums = begins.diff().float()[:, None].expand(count, width)
        assert torch.equal(target.cpu()[: count * width].view(count, width), sums)
        assert (target[count * width :] == 7).all()
    for neighbour, expected in ((count, 1.0), (count - 1, 2.0)):
        neighbours = guarded(torch.full((2, count, 2), neighbour).int(), 0)
        triton_kernel.blur_kernel[(2,)](source, neighbours, target, 1, count, ROWS=rows, WIDTH=width)
        assert (target[: count * width] == expected).all() and (target[count * width :] == 7).all()
    points, weights = guarded(torch.full((3, count), count - 1).int(), count), guarded(torch.ones(3, count), math.nan)
    lattice = (points, weights, source, 1.0)
    triton_kernel.update_kernel[(2,)](
        source, target, *lattice, *lattice, count, ROWS=rows, WIDTH=width, CORNERS=3, MORE_CORNERS=3
    )
    assert (target[: count * width] == 1 / width).all() and (target[count * width :] == 7).all()


@pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")
def test_labels_of_a_photograph_are_those_of_the_native_form(device: torch.device) -> None:
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()[60:92, 120:160].copy())[None]
    probabilities = scene(32, 40, 21)[1]
    native = dense_crf(image, probabilities, 2, backend="native")
    found = dense_crf(image.to(device), probabilities.to(device), 2).cpu()
    assert (found.argmax(1) == native.argmax(1)).float().mean() >= 0.995
    assert (native.argmax(1) == probabilities.argmax(1)).float().mean() < 0.9
    torch.testing.assert_close(found, native, atol=1e-4, rtol=0)


def test_opcheck(device: torch.device) -> None:
    image, probabilities = (x.to(device) for x in scene(5, 6, 4))
    turned = probabilities.transpose(2, 3).contiguous().transpose(2, 3)
    for given, iterations in ((probabilities, 0), (turned, 1)):
        torch.library.opcheck(dense_crf_op, (image, given.log(), iterations, *KERNELS))


def test_compiles_whole(device: torch.device) -> None:
    image, probabilities = (x.to(device) for x in scene(5, 6, 4))
    compiled = torch.compile(lambda i, p: dense_crf(i, p, 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image, probabilities), dense_crf(image, probabilities, 2))


def test_standard_deviations_too_small_to_number(device: torch.device) -> None:
    image, probabilities = (x.to(device) for x in scene(5, 6, 2))
    with pytest.raises(ValueError, match="too small for"):
        dense_crf(image, probabilities, bilateral_srgb=1e-6)
