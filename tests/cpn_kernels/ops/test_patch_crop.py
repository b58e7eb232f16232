"""Patch crops: cases worked out by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch

from cpn_kernels import patch_crop

MAP = torch.tensor([9, 9, 1, 2, 3, 4, 5, 6], dtype=torch.int16)
"""Two numbers of another map, then the map [[1, 2, 3], [4, 5, 6]]."""


def crop(**changes: tuple[int, ...]) -> torch.Tensor:
    parts = {
        "begin": (2,), "size": (2, 3), "scaled": (2, 3), "flip": (0,), "source": (0, 0), "target": (0, 0),
        "extent": (2, 3),
    } | changes  # fmt: skip
    return torch.tensor([[number for part in parts.values() for number in part]])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [[1, 2, 3, -1], [4, 5, 6, -1], [-1] * 4, [-1] * 4]),
        ({"flip": (1,)}, [[3, 2, 1, -1], [6, 5, 4, -1], [-1] * 4, [-1] * 4]),
        ({"target": (1, 2), "extent": (2, 2)}, [[-1] * 4, [-1, -1, 1, 2], [-1, -1, 4, 5], [-1] * 4]),
        ({"source": (1, 1), "extent": (1, 2)}, [[5, 6, -1, -1], [-1] * 4, [-1] * 4, [-1] * 4]),
        # centres of the columns of 6 lie at 1/4, 3/4, 5/4, ... of the map's, those of rows of 4 likewise
        ({"scaled": (4, 6), "extent": (4, 4)}, [[1, 1, 2, 2], [1, 1, 2, 2], [4, 4, 5, 5], [4, 4, 5, 5]]),
        ({"scaled": (4, 6), "source": (1, 1), "extent": (2, 3), "flip": (1,)},
         [[3, 2, 2, -1], [6, 5, 5, -1], [-1] * 4, [-1] * 4]),
        # reduced to one column, whose centre is the middle one's
        ({"scaled": (2, 1), "extent": (2, 1)}, [[2, -1, -1, -1], [5, -1, -1, -1], [-1] * 4, [-1] * 4]),
    ],
)  # fmt: skip
def test_by_hand(changes: dict[str, tuple[int, ...]], expected: list[list[int]]) -> None:
    for maps in (MAP, MAP.int()):
        found = patch_crop(maps, crop(**changes), 4)
        assert found.dtype == torch.int32 and found[0].tolist() == expected


def test_labels_beyond_the_sign_and_an_empty_batch() -> None:
    high = torch.tensor([65535, 40000], dtype=torch.int32)
    rows = crop(begin=(0,), size=(1, 2), scaled=(1, 2), extent=(1, 2))
    assert patch_crop(high.to(torch.int16), rows, 2).tolist() == [[[65535, 40000], [-1, -1]]]
    assert patch_crop(MAP, crop()[:0], 4).shape == (0, 4, 4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"maps are torch\.int64"):
        patch_crop(MAP.long(), crop(), 4)
    with pytest.raises(ValueError, match=r"crops are torch\.int64 \(1, 11\)"):
        patch_crop(MAP, crop()[:, 1:], 4)
    with pytest.raises(ValueError, match="side is 0"):
        patch_crop(MAP, crop(), 0)
