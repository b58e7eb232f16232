"""Augmented crops against Pillow's resize and OpenCV's hues, a case by hand, and what is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cpn_fast.data.loading.jitter import with_pillow
from cpn_kernels import augmented_crop
from cpn_kernels.ops.augmented_crop import NUMBERS, pack, reference
from cpn_kernels.ops.augmented_crop.packed import resize_weights
from cpn_kernels.ops.jittered_crop import Place, Step

FILL = (9, 8, 7)
STEPS = (Step("contrast", 0.71), Step("hue", 0.07), Step("brightness", 1.27), Step("saturation", 1.3))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def tensors(*packed) -> tuple[torch.Tensor, ...]:
    pixels, weights, numbers, amounts = zip(*packed, strict=True)
    joined = (torch.from_numpy(np.concatenate(parts)) for parts in (pixels, weights))
    return *joined, torch.from_numpy(np.stack(numbers)), torch.from_numpy(np.stack(amounts))


def test_by_hand() -> None:
    image = np.array([[[10, 20, 30], [50, 60, 70]]], np.uint8)
    place = Place((1, 2), True, (2, 2), (0, 0), (1, 0), (1, 2))
    # Greys: 18 and 58, hence a mean of 38; half the contrast lies half-way to it.
    assert [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in image[0].tolist()] == [18, 58]
    found = augmented_crop(*tensors(pack(image, place, [Step("contrast", 0.5)])), 2, FILL)
    assert found[0].tolist() == [[[9, 8, 7], [9, 8, 7]], [[44, 49, 54], [24, 29, 34]]]


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((37, 50), (46, 62)), ((33, 47), (33, 20)), ((5, 3), (64, 81)), ((375, 500), (336, 448)), ((400, 3), (2, 3)),
     ((1, 1), (4, 6)), ((40, 30), (1, 1)), ((1333, 7), (448, 3))],
)  # fmt: skip
def test_the_weights_are_those_of_pillows_resize(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    for image in (noise(*size), np.where(noise(*size) > 127, 255, 0).astype(np.uint8)):
        side = max(scaled)
        place = Place(scaled, False, (side, side), (0, 0), (0, 0), scaled)
        found = augmented_crop(*tensors(pack(image, place, ())), side, FILL)[0, : scaled[0], : scaled[1]]
        expected = Image.fromarray(image).resize((scaled[1], size[0]), Image.Resampling.BICUBIC)
        expected = expected.resize(scaled[::-1], Image.Resampling.BICUBIC)
        assert np.array_equal(found.numpy(), np.asarray(expected))


def test_weights_of_a_direction_that_stays() -> None:
    table = resize_weights(5, 5)
    kept = np.take_along_axis(table[1:], (np.arange(5) - table[0])[None], 0)[0]
    assert (kept == 1 << 22).all() and (table[1:].sum(0) == 1 << 22).all()


def test_every_hue_is_opencvs() -> None:
    level = np.arange(256)
    for red in range(0, 256, 51):
        colours = np.stack(np.broadcast_arrays(red, level[:, None], level), -1).astype(np.uint8)
        for shift in (0, 1, 77, 255):
            hsv = cv2.cvtColor(colours, cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(shift)
            expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
            found = reference.turn_hue(torch.from_numpy(colours), torch.tensor(float(shift)))
            assert np.array_equal(found.numpy(), expected), (red, shift)


def test_colours_next_to_half_a_level_round_as_opencvs() -> None:
    """Those that another order of the same float32 operations would round the other way."""
    saturation, value = np.meshgrid(np.arange(256), np.arange(256))
    for hue in range(0, 256, 3):
        rest = 6 * hue % 255
        # Twice the levels of the falling and the rising part, in 65025ths, and how far they are from an odd number.
        twice = (2 * value * (65025 - saturation * part) for part in (rest, 255 - rest))
        near = np.minimum(*(np.abs(level % 130050 - 65025) for level in twice)) < 30
        if not near.any():
            continue
        hsv = np.stack([np.full_like(value, hue), saturation, value], -1)[near][None].astype(np.uint8)
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
        found = reference.from_hsv(*(torch.from_numpy(hsv[..., place].astype(np.int32)) for place in range(3)))
        assert np.array_equal(found.numpy(), expected), hue


def test_a_batch_of_images_of_several_sizes() -> None:
    random = np.random.default_rng(5)
    images, places, orders = [], [], []
    for number in range(12):
        height, width, tall, broad = (int(side) for side in random.integers(3, 60, 4))
        rows, columns = min(tall, 24), min(broad, 24)
        source = (int(random.integers(tall - rows + 1)), int(random.integers(broad - columns + 1)))
        target = (int(random.integers(24 - rows + 1)), int(random.integers(24 - columns + 1)))
        images.append(noise(height, width, number))
        places.append(Place((tall, broad), bool(number % 2), (24, 24), source, target, (rows, columns)))
        orders.append([STEPS[place] for place in random.permutation(4)[: number % 5]])
    found = augmented_crop(*tensors(*map(pack, images, places, orders)), 24, FILL)
    for crop, *given in zip(found.numpy(), images, places, orders, strict=True):
        assert np.array_equal(crop, with_pillow(*given, FILL))


def test_an_empty_batch() -> None:
    nothing = (torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int32))
    numbers, amounts = torch.empty(0, NUMBERS, dtype=torch.int64), torch.empty(0, 4)
    assert augmented_crop(*nothing, numbers, amounts, 5, FILL).shape == (0, 5, 5, 3)


def test_what_does_not_fit_is_refused() -> None:
    place = Place((8, 8), False, (4, 4), (0, 0), (0, 0), (4, 4))
    pixels, weights, numbers, amounts = tensors(pack(noise(6, 5), place, STEPS))
    with pytest.raises(ValueError, match=r"pixels are torch\.int32"):
        augmented_crop(pixels.int(), weights, numbers, amounts, 4, FILL)
    with pytest.raises(ValueError, match=r"numbers are torch\.int64 \(1, 16\) on cpu; expected torch\.int64 \[1, 17\]"):
        augmented_crop(pixels, weights, numbers[:, 1:], amounts, 4, FILL)
    with pytest.raises(ValueError, match="pixels are 89; the numbers of 1 crops ask for 90"):
        augmented_crop(pixels[1:], weights, numbers, amounts, 4, FILL)
    with pytest.raises(ValueError, match="weights are 1; the numbers"):
        augmented_crop(pixels, weights[:1], numbers, amounts, 4, FILL)
    with pytest.raises(ValueError, match="side is 3; the numbers describe crops that are larger"):
        augmented_crop(pixels, weights, numbers, amounts, 3, FILL)
    with pytest.raises(ValueError, match="side is 0"):
        augmented_crop(pixels, weights, numbers, amounts, 0, FILL)
    with pytest.raises(ValueError, match="fill is"):
        augmented_crop(pixels, weights, numbers, amounts, 4, (0, 0, 256))
    with pytest.raises(ValueError, match="at most once"):
        pack(noise(6, 5), place, (STEPS[0], STEPS[0]))
    flat = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (30000, 30000, 3))
    with pytest.raises(ValueError, match="30000 x 30000 pixels"):
        pack(flat, Place((8, 8), False, (4, 4), (0, 0), (0, 0), (4, 4)), ())
