"""The native CP triplet against eager torch: uint8 images and patches to three normalised views."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cpn_kernels import native_library
from cpn_kernels.cp_triplet import native, reference

BATCH, SIDE, CELL = 4, 448, 32

pytestmark = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")


def test_native_against_eager(against: Callable[..., float]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    cell = torch.arange(SIDE) // CELL
    patches = (cell[:, None] * (SIDE // CELL) + cell).to(torch.int32).repeat(BATCH, 1, 1)
    patches[:, : SIDE // 10] = -1
    keys = torch.arange(BATCH) - 2

    def agree() -> None:
        ours, theirs = native.cp_triplet(images, patches, keys, 0.5), reference.cp_triplet(images, patches, keys, 0.5)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])

    against(
        candidate=lambda: native.cp_triplet(images, patches, keys, 0.5),
        peer=lambda: reference.cp_triplet(images, patches, keys, 0.5),
        agree=agree,
        items=BATCH,
    )
