"""The kernel of patch crops equals the reference bit by bit: integers throughout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpn_kernels.ops.patch_crop import patch_crop, reference
from cpn_kernels.ops.patch_crop.op import patch_crop_op

SIZES = ((37, 61), (1, 1), (64, 23), (5, 90))


def sample(side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Maps of several sizes, and crops of them: enlarged and reduced, mirrored, cut at every side, and padded."""
    generator = torch.Generator().manual_seed(side)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    lengths = [height * width for height, width in SIZES]
    top = 2**16 if dtype == torch.int16 else 2**31 - 1
    maps = torch.randint(0, top, (sum(lengths),), generator=generator)
    rows = []
    for number in range(12):
        height, width = SIZES[number % len(SIZES)]
        scaled = [max(1, draw(length // 2, 2 * length)) for length in (height, width)]
        axes = []
        for length in scaled:
            extent = draw(1, min(side, length))
            axes.append((draw(0, length - extent), draw(0, side - extent), extent))
        source, target, extents = zip(*axes, strict=True)
        begin = sum(lengths[: number % len(SIZES)])
        rows.append([begin, height, width, *scaled, number // 4 % 2, *source, *target, *extents])
    return maps.to(dtype), torch.tensor(rows)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("side", [1, 16, 45, 70])
def test_against_the_reference(side: int, dtype: torch.dtype, device: torch.device) -> None:
    maps, crops = sample(side, dtype)
    found = patch_crop(maps.to(device), crops.to(device), side)
    expected = reference.patch_crop(maps, crops, side)
    assert found.dtype == torch.int32 and torch.equal(found.cpu(), expected)
    assert (expected >= 0).any() and (side == 1 or (expected == -1).any())


@pytest.mark.usefixtures("kernels_only")
def test_strided_inputs(device: torch.device) -> None:
    maps, crops = sample(20, torch.int16)
    apart = torch.stack([maps, maps], dim=1).to(device)[:, 0]
    wide = torch.cat([crops, crops], dim=1).to(device)[:, :12]
    assert not apart.is_contiguous() and not wide.is_contiguous()
    assert torch.equal(patch_crop(apart, wide, 20).cpu(), reference.patch_crop(maps, crops, 20))


def test_the_operator_keeps_the_rules_of_custom_operators(device: torch.device) -> None:
    maps, crops = sample(17, torch.int32)
    torch.library.opcheck(patch_crop_op, (maps.to(device), crops.to(device), 17))
