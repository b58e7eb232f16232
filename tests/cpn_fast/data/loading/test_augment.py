"""Augmentation: geometry against per-pixel loops, colours against formulas, images and maps kept together."""

from __future__ import annotations

import colorsys
from fractions import Fraction

import numpy as np
import pytest

from cpn_fast.config.training import AugmentOptions
from cpn_fast.data.loading.augment import (
    IMAGENET_MEAN_PIXEL,
    Geometry,
    augment,
    draw_geometry,
    draw_jitter,
    grid_patches,
    scaled_size,
)
from cpn_fast.data.loading.jitter import jittered_crop
from cpn_fast.data.loading.random import generator
from cpn_kernels.ops.jittered_crop import Place

STILL = (0.0, 0.0, 0.0, 0.0)


def rng(number: int = 0) -> np.random.Generator:
    return generator(0, 0, str(number), "test")


def loop_map(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Each crop pixel's centre, mapped back in exact fractions."""
    out = np.full((geometry.crop, geometry.crop), -1)
    for i in range(geometry.extent[0]):
        for j in range(geometry.extent[1]):
            y, x = geometry.source[0] + i, geometry.source[1] + j
            if geometry.flip:
                x = geometry.scaled[1] - 1 - x
            row = int((y + Fraction(1, 2)) * labels.shape[0] / geometry.scaled[0])
            column = int((x + Fraction(1, 2)) * labels.shape[1] / geometry.scaled[1])
            out[geometry.target[0] + i, geometry.target[1] + j] = labels[row, column]
    return out


@pytest.mark.parametrize("size", [(30, 41), (41, 30), (7, 90), (1, 1), (24, 24)])
def test_maps_follow_a_per_pixel_loop(size):
    options = AugmentOptions(crop=24, resize=(16, 48))
    labels = rng().integers(0, 1000, size).astype(np.uint16)
    flips = set()
    for number in range(8):
        geometry = draw_geometry(*size, options, rng(number))
        flips.add(geometry.flip)
        mapped = geometry.apply_map(labels)
        assert mapped.dtype == np.int32
        assert np.array_equal(mapped, loop_map(labels, geometry))
    assert flips == {False, True}


def test_image_and_map_show_the_same_place():
    """Flat 20-pixel squares of known colours: away from their edges the crop's colour names the map's label."""
    colours = rng().integers(0, 256, (12, 3)).astype(np.uint8)
    labels = np.arange(12).reshape(3, 4).repeat(20, 0).repeat(20, 1)
    seen = 0
    for number in range(12):
        options = AugmentOptions(crop=64, resize=(60, 140), jitter=STILL)
        crop, geometry = augment(colours[labels], options, rng(number))
        mapped = geometry.apply_map(labels)
        inner = np.ones_like(mapped, bool)
        for dy in range(-6, 7, 3):
            for dx in range(-6, 7, 3):
                inner &= np.roll(mapped, (dy, dx), (0, 1)) == mapped
        inner &= mapped >= 0
        seen += int(inner.sum())
        # Cubic rings reach two source pixels and may over- or undershoot there by a few levels.
        assert np.abs(crop[inner].astype(int) - colours[mapped[inner]]).max() <= 12
    assert seen > 1000


def test_small_image_is_padded_with_the_mean_and_belongs_to_no_patch():
    image = np.full((40, 20, 3), 200, np.uint8)
    places = set()
    for number in range(6):
        crop, geometry = augment(image, AugmentOptions(crop=64, resize=(32, 32), jitter=STILL), rng(number))
        padding = geometry.apply_map(np.zeros((40, 20), np.uint8)) == -1
        assert padding.sum() == 64 * 64 - 32 * 16
        assert (crop[padding] == IMAGENET_MEAN_PIXEL).all()
        assert (crop[~padding] == 200).all()
        assert geometry.share_seen == 1.0
        places.add(geometry.target)
    assert len(places) > 3


def test_share_seen_is_the_visible_part_of_the_image():
    geometry = Geometry(scaled=(50, 200), flip=False, crop=100, source=(0, 30), target=(25, 0), extent=(50, 100))
    assert geometry.share_seen == 0.5


def test_long_side_is_drawn_from_the_whole_range_and_crops_from_everywhere():
    options = AugmentOptions(crop=8, resize=(16, 18))
    drawn = [draw_geometry(10, 20, options, rng(number)) for number in range(300)]
    assert {geometry.scaled for geometry in drawn} == {(8, 16), (8, 17), (9, 18)}
    assert {geometry.source[1] for geometry in drawn if geometry.scaled[1] == 16} == set(range(9))
    flips = sum(geometry.flip for geometry in drawn)
    assert 115 < flips < 185
    assert not any(
        draw_geometry(10, 20, AugmentOptions(crop=8, resize=(16, 18), flip=False), rng(number)).flip
        for number in range(20)
    )
    assert AugmentOptions(crop=224).resize_range() == (224, 384)
    assert scaled_size(1, 3000, 300) == (1, 300)


def colour_jitter(image: np.ndarray, ranges: tuple[float, float, float, float], numbers: np.random.Generator):
    """The whole image, jittered alone: neither resized nor cut."""
    size = image.shape[:2]
    place = Place(size, False, size, (0, 0), (0, 0), size)
    return jittered_crop(image, place, draw_jitter(ranges, numbers), IMAGENET_MEAN_PIXEL)


def grey(image: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma, the grey that contrast and saturation move towards."""
    return image @ np.array([0.299, 0.587, 0.114])


def drawn_amount(number: int, which: int) -> float:
    numbers = rng(number)
    numbers.permutation(4)
    return float(numbers.uniform(-1.0, 1.0, 4)[which])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_brightness_contrast_saturation_follow_their_formulas(which):
    image = rng(99).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    for number in range(4):
        ranges = tuple(0.3 if step == which else 0.0 for step in range(4))
        factor = 1.0 + 0.3 * drawn_amount(number, which)
        base = (np.zeros(()), grey(image).mean(), grey(image)[..., None])[which]
        expected = np.clip(base + factor * (image - base), 0, 255)
        # Pillow rounds the grey value and truncates the blend: one level each.
        assert np.abs(colour_jitter(image, ranges, rng(number)) - expected).max() <= 2.0


def test_hue_turns_the_colour_circle():
    for number in range(3):
        turn = 0.1 * drawn_amount(number, 3)
        image = np.array([[[200, 40, 30], [30, 180, 60], [90, 90, 90], [250, 240, 10]]], np.uint8)
        expected = []
        for pixel in image[0] / 255.0:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected.append(colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value))
        jittered = colour_jitter(image, (0.0, 0.0, 0.0, 0.1), rng(number))
        # 256 hues: half a step of hue is up to 3 levels of a channel, on the way there and back.
        assert np.abs(jittered[0] / 255.0 - np.array(expected)).max() <= 7 / 255


def test_no_jitter_leaves_the_image_as_it_is():
    image = rng().integers(0, 256, (20, 30, 3)).astype(np.uint8)
    assert np.array_equal(colour_jitter(image, STILL, rng()), image)


def test_jitter_order_varies():
    image = rng().integers(0, 256, (8, 8, 3)).astype(np.uint8)
    orders = {tuple(rng(number).permutation(4).tolist()) for number in range(60)}
    assert len(orders) > 15
    assert not np.array_equal(
        colour_jitter(image, (0.3, 0.3, 0.3, 0.1), rng(0)), colour_jitter(image, (0.3, 0.3, 0.3, 0.1), rng(1))
    )


def test_same_numbers_same_crop():
    image = rng().integers(0, 256, (50, 70, 3)).astype(np.uint8)
    options = AugmentOptions(crop=40)
    first, second = (augment(image, options, rng(5))[0] for _ in range(2))
    assert first.shape == (40, 40, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, augment(image, options, rng(6))[0])


def test_grid_patches_of_a_full_crop():
    whole = Geometry(scaled=(448, 448), flip=False, crop=448, source=(0, 0), target=(0, 0), extent=(448, 448))
    patches = grid_patches(whole, (112,), rng())
    assert patches.dtype == np.int32
    assert np.array_equal(np.bincount(patches.ravel()), np.full(16, 112 * 112))
    assert patches[0, 112] == 1
    assert patches[112, 0] == 4
    last_smaller = grid_patches(whole, (300,), rng())
    assert np.bincount(last_smaller.ravel()).tolist() == [300 * 300, 300 * 148, 148 * 300, 148 * 148]


def test_grid_side_is_drawn_evenly_and_scales_with_the_crop():
    crop = Geometry(scaled=(128, 100), flip=False, crop=128, source=(0, 0), target=(0, 9), extent=(128, 100))
    # Sides 16 and 32: the last visible pixel (row 127, column 108) lies in cell 7 * 8 + 6 or 3 * 4 + 3.
    counts = {63: 0, 16: 0}
    for number in range(200):
        patches = grid_patches(crop, (56, 112), rng(number))
        assert (patches[:, :9] == -1).all()
        assert (patches[:, 109:] == -1).all()
        assert (patches[:, 9:109] >= 0).all()
        counts[int(patches.max()) + 1] += 1
    assert min(counts.values()) > 70
    assert grid_patches(crop, (1,), rng()).max() == 128 * 128 - 1 - 19
