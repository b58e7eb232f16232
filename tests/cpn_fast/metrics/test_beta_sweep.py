"""The one-pass beta sweep equals scikit-learn's confusion matrix of every beta, exactly."""

import math

import numpy as np
import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.metrics.beta_sweep import BETAS, BetaSweep, best_foreground, iou_point, mask_at

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def argmax_mask(foreground: np.ndarray, beta: float) -> np.ndarray:
    """The definition: argmax over [beta, foreground maps]."""
    background = np.full((1, *foreground.shape[1:]), beta, dtype=np.float32)
    return np.concatenate([background, foreground]).argmax(0)


def scene(rng: np.random.Generator, classes: int, shape=(13, 17), void=0.1):
    """Maps with many values exactly on the swept grid, ties between classes, an absent class, and a mask with void."""
    maps = rng.random((classes, *shape), dtype=np.float32)
    on_grid = rng.random(maps.shape) < 0.5
    maps[on_grid] = BETAS[rng.integers(0, 101, on_grid.sum())]
    maps[0] = 0  # absent
    if classes > 2:
        tie = rng.random(shape) < 0.2
        maps[2][tie] = maps[1][tie]
    maps[:, :2] = 0  # rows where nothing fires: beta 0 ties with zero
    mask = rng.integers(0, classes + 1, shape).astype(np.uint8)
    mask[rng.random(shape) < void] = 255
    return maps, mask


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_equals_sklearn_confusion_matrix_at_every_beta(classes):
    rng = np.random.default_rng(classes)
    scenes = [scene(rng, classes, shape) for shape in [(13, 17), (1, 40), (30, 8)]]
    sweep = BetaSweep(classes)
    for maps, mask in scenes:
        sweep.update(maps, mask)
    for beta in BETAS:
        truth = np.concatenate([mask[mask != 255] for _, mask in scenes])
        predicted = np.concatenate([argmax_mask(maps, beta)[mask != 255] for maps, mask in scenes])
        expected = sklearn_metrics.confusion_matrix(truth, predicted, labels=range(classes + 1))
        assert np.array_equal(sweep.confusion(float(beta)), expected), beta


def test_iou_equals_sklearn_jaccard_where_classes_are_absent():
    rng = np.random.default_rng(7)
    maps, mask = scene(rng, 5)
    mask[mask == 3] = 1  # class 3 is predicted but never true; class 1 (map 0) true but never predicted
    mask[mask == 5] = 0
    maps[4] = 0  # class 5 is in neither
    sweep = BetaSweep(5)
    sweep.update(maps, mask)
    point = sweep.at(0.3)
    valid = mask != 255
    expected = sklearn_metrics.jaccard_score(
        mask[valid], argmax_mask(maps, np.float32(0.3))[valid], labels=range(5), average=None
    )
    assert point.per_class[5] is None
    np.testing.assert_allclose(point.per_class[:5], expected, rtol=1e-12)
    np.testing.assert_allclose(
        [point.miou, point.background, point.foreground],
        [expected.mean(), expected[0], expected[1:].mean()],
        rtol=1e-12,
    )


def test_background_wins_a_tie_by_hand():
    maps = np.array([[[0.5, 0.5, 0.0, 1.0]]], dtype=np.float32)
    mask = np.array([[0, 1, 0, 1]], dtype=np.uint8)
    sweep = BetaSweep(1)
    sweep.update(maps, mask)
    assert sweep.confusion(0.5).tolist() == [[2, 0], [1, 1]]
    assert sweep.confusion(0.49).tolist() == [[1, 1], [0, 2]]
    assert sweep.confusion(0.0).tolist() == [[1, 1], [0, 2]]  # a score of 0 ties with beta 0: background
    assert sweep.confusion(1.0).tolist() == [[2, 0], [2, 0]]
    # IoU at 0.5: background 2/3, class 1/2; at 0.49: background 1/2, class 2/3: equal means, the lower beta is reported
    assert sweep.at(0.5).miou == pytest.approx(7 / 12)
    assert sweep.best().beta == 0.0
    assert len(sweep.table()) == 101


def test_mask_at_is_the_argmax():
    maps, _ = scene(np.random.default_rng(3), 4, (40, 50))
    for beta in (0.0, 0.29, 0.5, 1.0):
        assert np.array_equal(mask_at(*best_foreground(maps), beta), argmax_mask(maps, np.float32(beta)))


def test_merge_equals_one_pass():
    rng = np.random.default_rng(1)
    scenes = [scene(rng, 3) for _ in range(4)]
    whole, left, right = BetaSweep(3), BetaSweep(3), BetaSweep(3)
    for i, (maps, mask) in enumerate(scenes):
        whole.update(maps, mask)
        (left if i < 2 else right).update(maps, mask)
    left.merge(right)
    assert left.images == whole.images == 4
    assert left.table() == whole.table()
    with pytest.raises(ValueError, match="2 classes"):
        left.merge(BetaSweep(2))


def test_images_without_mask_are_counted_apart():
    maps, mask = scene(np.random.default_rng(2), 3)
    some, only = BetaSweep(3), BetaSweep(3)
    some.update(maps, None)
    some.update(maps, mask)
    some.update(maps, None)
    only.update(maps, mask)
    assert (some.images, some.without_mask) == (1, 2)
    assert some.table() == only.table()


def test_no_mask_at_all_is_an_error():
    sweep = BetaSweep(2)
    sweep.update(np.zeros((2, 3, 3), np.float32), None)
    with pytest.raises(DataError, match=r"0 images with and 1 without"):
        sweep.best()


@pytest.mark.parametrize(
    ("maps", "mask", "match"),
    [
        (np.zeros((2, 4, 6), np.float32), np.zeros((6, 4), np.uint8), r"cat\.jpg: the mask is 4 x 6 .* 6 x 4"),
        (np.zeros((2, 4, 6), np.float32), np.full((4, 6), 3, np.uint8), r"cat\.jpg: mask values \[3\]"),
        (np.full((2, 4, 6), np.nan, np.float32), np.zeros((4, 6), np.uint8), r"cat\.jpg: .*NaN"),
        (np.zeros((3, 4, 6), np.float32), np.zeros((4, 6), np.uint8), r"cat\.jpg: got 3 maps, expected 2"),
    ],
)
def test_bad_input_names_the_image(maps, mask, match):
    with pytest.raises(DataError, match=match):
        BetaSweep(2).update(maps, mask, "cat.jpg")


def test_beta_off_the_grid():
    with pytest.raises(ValueError, match="grid"):
        BetaSweep(2)._index(0.255)


def test_background_that_is_nowhere_has_no_iou():
    point = iou_point(np.array([[0, 0], [0, 4]]), 0.2)
    assert math.isnan(point.background)
    assert point.miou == point.foreground == 1.0


def test_a_truth_without_foreground_gives_no_score():
    """However well the background is found: masks that find nothing would score 100%."""
    for matrix in ([[9, 0, 0], [0, 0, 0]], [[4, 5, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]):
        point = iou_point(np.array(matrix))
        assert np.isnan([point.miou, point.background, point.foreground]).all() and point.per_class == (None, None)
