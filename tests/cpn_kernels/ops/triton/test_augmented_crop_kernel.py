"""The kernels of augmented crops equal Pillow and OpenCV bit by bit: what the host's crop is made with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cpn_kernels.ops.augmented_crop import Packed, augmented_crop, pack, reference
from cpn_kernels.ops.augmented_crop.op import augmented_crop_op
from cpn_kernels.ops.jittered_crop import Place, Step

FILL = (124, 116, 104)
SIDE = 21
STEPS = (Step("brightness", 1.27), Step("contrast", 0.71), Step("saturation", 1.3), Step("hue", -0.09))
CUTS = (
    ((37, 50), Place((27, 36), True, (SIDE, SIDE), (5, 13), (0, 0), (SIDE, SIDE))),
    ((33, 24), Place((33, 24), False, (SIDE, SIDE), (9, 2), (0, 0), (SIDE, SIDE))),
    ((40, 53), Place((17, 16), True, (SIDE, SIDE), (0, 0), (4, 3), (17, 16))),
    ((5, 3), Place((40, 28), True, (SIDE, SIDE), (16, 7), (0, 0), (SIDE, SIDE))),
    ((1, 1), Place((4, 6), False, (SIDE, SIDE), (0, 0), (15, 1), (4, 6))),
    ((24, 13), Place((1, 1), True, (SIDE, SIDE), (0, 0), (20, 1), (1, 1))),
    ((20, 20), Place((20, 20), False, (SIDE, SIDE), (0, 0), (0, 0), (0, 4))),
)


def image(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def of_the_host(source: np.ndarray, place: Place, steps: tuple[Step, ...]) -> np.ndarray:
    try:
        from cpn_fast.data.loading.jitter import with_pillow
    except ModuleNotFoundError:  # a GPU's bare machine lacks OpenCV: there the reference, which is compared elsewhere
        given = batch([pack(source, place, steps)], torch.device("cpu"))
        return reference.augmented_crop(*given, place.size[0], FILL)[0].numpy()
    return with_pillow(source, place, steps, FILL)


def batch(packed: list[Packed], device: torch.device) -> tuple[torch.Tensor, ...]:
    pixels, weights, numbers, amounts = zip(*packed, strict=True)
    joined = [torch.from_numpy(np.concatenate(parts)).to(device) for parts in (pixels, weights)]
    return *joined, torch.from_numpy(np.stack(numbers)), torch.from_numpy(np.stack(amounts)).to(device)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("steps", [(), STEPS, (STEPS[3], STEPS[1])], ids=len)
def test_sizes_and_places_in_one_batch(steps: tuple[Step, ...], device: torch.device) -> None:
    images = [image(*size, seed) for seed, (size, _) in enumerate(CUTS)]
    packed = [pack(image, place, steps) for image, (_, place) in zip(images, CUTS, strict=True)]
    found = augmented_crop(*batch(packed, device), SIDE, FILL).cpu().numpy()
    for number, (_, place) in enumerate(CUTS):
        assert np.array_equal(found[number], of_the_host(images[number], place, steps)), number


@pytest.mark.usefixtures("kernels_only")
def test_every_order_of_the_steps(device: torch.device) -> None:
    place = Place((9, 12), True, (8, 8), (1, 3), (0, 0), (8, 8))
    source = image(7, 10, 3)
    orders = [steps for count in range(5) for steps in itertools.permutations(STEPS, count)]
    found = augmented_crop(*batch([pack(source, place, steps) for steps in orders], device), 8, FILL).cpu().numpy()
    for crop, steps in zip(found, orders, strict=True):
        assert np.array_equal(crop, of_the_host(source, place, steps)), steps


@pytest.mark.usefixtures("kernels_only")
def test_factors_to_their_ends_every_hue_and_hard_edges(device: torch.device) -> None:
    source = np.random.default_rng(3).choice(np.array([0, 1, 127, 254, 255], np.uint8), (31, 40, 3))
    place = Place((31, 40), False, (31, 31), (0, 9), (0, 0), (31, 31))
    steps = [Step(kind, amount) for kind in ("brightness", "contrast", "saturation") for amount in (0.0, 0.3, 1.7, 9.0)]
    steps += [Step("hue", turn / 64) for turn in range(-32, 33, 11)]
    found = augmented_crop(*batch([pack(source, place, (step,)) for step in steps], device), 31, FILL).cpu().numpy()
    for crop, step in zip(found, steps, strict=True):
        assert np.array_equal(crop, of_the_host(source, place, (step,))), step


def test_the_operator_keeps_the_rules_of_custom_operators(device: torch.device) -> None:
    from cpn_kernels.ops.augmented_crop import _rows

    place = Place((6, 5), False, (4, 4), (0, 0), (0, 0), (4, 4))
    pixels, weights, numbers, amounts = batch([pack(image(6, 5, 1), place, STEPS)], device)
    rows, buffer = _rows(numbers)
    torch.library.opcheck(
        augmented_crop_op, (pixels, weights, rows.to(device), amounts, buffer, [6, 6, 5], 4, list(FILL))
    )
