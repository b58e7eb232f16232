"""Per-image counts: exact at every beta, and the same again from disk."""

from __future__ import annotations

import numpy as np
import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.metrics.beta_sweep import BETAS, BetaSweep, best_foreground, mask_at
from cpn_fast.metrics.confusion import confusion_of
from cpn_fast.metrics.image_counts import ImageCounts, ScoredImages, read_counts, write_counts

K = 3


def images(count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps float32 [K, H, W] and true masks uint8 [H, W], void pixels among them."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        height, width = rng.integers(5, 12, 2)
        maps = rng.choice(np.r_[BETAS, 0.123, 0.999].astype(np.float32), (K, height, width))
        mask = rng.choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), (height, width))
        made.append((maps, mask))
    return made


def tallies_of(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    known = truth != 255
    right, claimed, true = np.zeros((3, K + 1), dtype=np.int64)
    for c in range(K + 1):
        right[c] = (known & (truth == c) & (predicted == c)).sum()
        claimed[c] = (known & (predicted == c)).sum()
        true[c] = (truth == c).sum()
    return np.stack([right, claimed, true])


def test_tallies_of_every_image_at_every_beta() -> None:
    sweep = BetaSweep(K, keep_images=True)
    made = images()
    for maps, mask in made:
        sweep.update(maps, mask)
    counts = ImageCounts.of(sweep.per_image, K)
    assert len(counts) == 5 and counts.has_beta
    for index in range(len(BETAS)):
        found = counts.tallies(index, K)
        expected = [tallies_of(mask, mask_at(*best_foreground(maps), BETAS[index])) for maps, mask in made]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found[:, 0].sum(axis=0), np.diag(sweep.confusion(index / 100)))


def test_masks_that_were_read_have_no_beta() -> None:
    rng = np.random.default_rng(1)
    pairs = [(mask, rng.choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), mask.shape)) for _, mask in images()]
    counts = ImageCounts.of_confusions([confusion_of(truth, predicted, K) for truth, predicted in pairs])
    assert not counts.has_beta
    expected = [tallies_of(truth, predicted) for truth, predicted in pairs]
    for index in (0, 50, 100):
        np.testing.assert_array_equal(counts.tallies(index, K), expected)


def test_counts_of_images_are_taken_in_any_order() -> None:
    rng = np.random.default_rng(3)
    matrices = [rng.integers(0, 3, (3, 4)) * (number != 1) for number in range(5)]  # the second of no pixel at all
    order = [3, 1, 4, 0, 2]
    taken, expected = (
        ImageCounts.of_confusions(matrices).take(order),
        ImageCounts.of_confusions([matrices[place] for place in order]),
    )
    for part in ("offsets", "truths", "winners", "bins", "counts"):
        np.testing.assert_array_equal(getattr(taken, part), getattr(expected, part))
        assert getattr(taken, part).dtype == getattr(expected, part).dtype


def test_the_file_gives_back_what_was_written(tmp_path) -> None:
    sweep = BetaSweep(K, keep_images=True)
    for maps, mask in images():
        sweep.update(maps, mask)
    scored = ScoredImages(tuple("abcdé"), ("x", "y y", "z"), {"cam": ImageCounts.of(sweep.per_image, K)})
    path = tmp_path / "counts.npz"
    write_counts(path, scored)
    found = read_counts(path)
    assert (found.ids, found.classes, list(found.maps)) == (scored.ids, scored.classes, ["cam"])
    np.testing.assert_array_equal(found.maps["cam"].tallies(30, K), scored.maps["cam"].tallies(30, K))
    assert [p.name for p in tmp_path.iterdir()] == ["counts.npz"]


@pytest.mark.parametrize("content", [None, b"", b"not an archive"])
def test_a_file_that_is_none(tmp_path, content) -> None:
    path = tmp_path / "counts.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"counts\.npz.*cpn evaluate"):
        read_counts(path)
