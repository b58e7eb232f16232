"""The jittered crop against the plain way: Pillow on the whole resized image, cut at the end; bit by bit."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cpn_fast.data.loading.jitter import jittered_crop, with_pillow
from cpn_kernels import native_library
from cpn_kernels.ops.jittered_crop import Place, Step, native

FILL = (124, 116, 104)
STEPS = (Step("brightness", 1.27), Step("contrast", 0.71), Step("saturation", 1.3), Step("hue", -0.09))
FORMS = [
    pytest.param(with_pillow, id="pillow"),
    pytest.param(
        native.jittered_crop,
        id="native",
        marks=pytest.mark.skipif(not native_library.available(), reason="no native library"),
    ),
]


def whole_then_cut(image, place, steps):
    height, width = place.scaled
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    picture = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if place.flip else pixels))
    for kind, amount in steps:
        if kind == "hue":
            hsv = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(round(amount * 256) % 256)
            picture = Image.fromarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))
        else:
            maker = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}[kind]
            picture = getattr(ImageEnhance, maker)(picture).enhance(amount)
    out = np.empty((*place.size, 3), np.uint8)
    out[:] = FILL
    (top, left), (row, column), (rows, columns) = place.source, place.target, place.extent
    out[row : row + rows, column : column + columns] = np.asarray(picture)[top : top + rows, left : left + columns]
    return out


def photograph(height, width, seed=0):
    """Smooth colours with noise on them, of every level."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + random.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_every_order_of_the_steps(form):
    image = photograph(37, 50)
    place = Place((46, 62), True, (40, 40), (5, 13), (0, 0), (40, 40))
    for count in range(5):
        for steps in itertools.permutations(STEPS, count):
            assert np.array_equal(form(image, place, steps, FILL), whole_then_cut(image, place, steps)), steps


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("size", "place"),
    [
        pytest.param((33, 47), Place((33, 47), False, (20, 20), (9, 27), (0, 0), (20, 20)), id="not-resized"),
        pytest.param((60, 91), Place((17, 23), True, (30, 30), (0, 0), (11, 3), (17, 23)), id="shrunk-and-padded"),
        pytest.param((60, 91), Place((23, 5), False, (10, 4), (13, 1), (0, 0), (10, 4)), id="other-aspect"),
        pytest.param((5, 3), Place((64, 81), True, (48, 48), (16, 33), (0, 0), (48, 48)), id="much-enlarged"),
        pytest.param((1, 1), Place((4, 6), False, (8, 8), (0, 0), (4, 1), (4, 6)), id="one-pixel"),
        pytest.param((40, 30), Place((1, 1), True, (3, 3), (0, 0), (1, 1), (1, 1)), id="to-one-pixel"),
        pytest.param((40, 30), Place((40, 29), True, (9, 31), (31, 0), (0, 2), (9, 29)), id="one-direction"),
    ],
)
def test_sizes_and_places(form, size, place):
    image = photograph(*size)
    for steps in ((), STEPS, STEPS[::-1], (STEPS[3], STEPS[1])):
        assert np.array_equal(form(image, place, steps, FILL), whole_then_cut(image, place, steps))


@pytest.mark.parametrize("form", FORMS)
def test_a_very_high_image_is_resized_across_first_too(form):
    image = photograph(1333, 7)
    place = Place((448, 3), False, (448, 3), (0, 0), (0, 0), (448, 3))
    across = Image.fromarray(image).resize((3, 1333), Image.Resampling.BICUBIC)
    expected = np.asarray(across.resize((3, 448), Image.Resampling.BICUBIC))
    at_once = np.asarray(Image.fromarray(image).resize((3, 448), Image.Resampling.BICUBIC))
    assert np.abs(expected.astype(int) - at_once).max() <= 1  # which direction Pillow begins with is its own business
    assert np.array_equal(form(image, place, (), FILL), expected)


@pytest.mark.parametrize("form", FORMS)
def test_factors_to_their_ends_and_hard_edges(form):
    image = np.random.default_rng(3).choice(np.array([0, 1, 127, 254, 255], np.uint8), (31, 43, 3))
    place = Place((45, 63), False, (30, 30), (15, 20), (0, 0), (30, 30))
    for kind, amount in itertools.product(("brightness", "contrast", "saturation"), (0.0, 0.3, 1.0, 1.7, 9.0)):
        steps = [Step(kind, amount)]
        assert np.array_equal(form(image, place, steps, FILL), whole_then_cut(image, place, steps)), steps


@pytest.mark.skipif(not native_library.available(), reason="no native library")
@pytest.mark.parametrize("turns", [-0.09, 0.5])
def test_the_hue_of_every_colour_is_turned_as_opencv_does(turns):
    side = 2048
    for red in range(0, 256, 64):  # a quarter of all colours at a time
        levels = np.arange(red << 16, (red + 64) << 16, dtype=np.uint32).reshape(side, side)
        colours = np.stack([levels >> 16, levels >> 8, levels], -1).astype(np.uint8)
        place = Place((side, side), False, (side, side), (0, 0), (0, 0), (side, side))
        steps = [Step("hue", turns)]
        assert np.array_equal(native.jittered_crop(colours, place, steps, FILL), whole_then_cut(colours, place, steps))


@pytest.mark.parametrize("form", FORMS)
def test_an_image_with_a_stride_and_a_crop_that_shows_nothing(form):
    place = Place((20, 20), False, (8, 8), (6, 6), (0, 0), (8, 8))
    strided = photograph(30, 60)[:, ::2]
    assert np.array_equal(form(strided, place, STEPS, FILL), whole_then_cut(strided.copy(), place, STEPS))
    nothing = Place((20, 20), False, (4, 4), (0, 0), (0, 0), (0, 4))
    for steps in ((), STEPS, STEPS[::-1]):
        assert (form(strided, nothing, steps, FILL) == FILL).all()


def test_what_the_native_form_does_not_take_goes_to_pillow():
    image = photograph(400, 3)
    place = Place((2, 3), False, (2, 3), (0, 0), (0, 0), (2, 3))
    assert not native.is_supported(400, 3, place)
    assert np.array_equal(jittered_crop(image, place, STEPS, FILL), whole_then_cut(image, place, STEPS))


def test_wrong_arguments_are_refused():
    image = photograph(10, 10)
    place = Place((10, 10), False, (5, 5), (0, 0), (0, 0), (5, 5))
    with pytest.raises(ValueError, match="float32"):
        jittered_crop(image.astype(np.float32), place, (), FILL)
    with pytest.raises(ValueError, match=r"rows 6 to 11 lie outside of a resized image of 10"):
        jittered_crop(image, Place((10, 10), False, (5, 5), (6, 0), (0, 0), (5, 5)), (), FILL)
    with pytest.raises(ValueError, match=r"columns 1 to 6 lie outside of a crop of 5"):
        jittered_crop(image, Place((10, 10), False, (5, 5), (0, 0), (0, 1), (5, 5)), (), FILL)
    with pytest.raises(ValueError, match="at most once"):
        jittered_crop(image, place, (STEPS[0], STEPS[0]), FILL)
