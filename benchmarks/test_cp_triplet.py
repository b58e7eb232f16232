"""The CP triplet against eager torch: uint8 images and patches to three normalised views; natively, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.measuring import copy_bytes_per_ms, device_ms
from cpn_kernels import native_library
from cpn_kernels.ops.cp_triplet import cp_triplet, native, reference

BATCH, SIDE, CELL = 4, 448, 32
GPU_BATCH = 16


def draw(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, patches and keys; the first rows are padding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    cell = torch.arange(SIDE) // CELL
    patches = (cell[:, None] * (SIDE // CELL) + cell).to(torch.int32).repeat(batch, 1, 1)
    patches[:, : SIDE // 10] = -1
    return images, patches, torch.arange(batch) - 2


@pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")
def test_native_against_eager(against: Callable[..., float]) -> None:
    images, patches, keys = draw(BATCH)

    def agree() -> None:
        ours, theirs = native.cp_triplet(images, patches, keys, 0.5), reference.cp_triplet(images, patches, keys, 0.5)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])

    against(
        candidate=lambda: native.cp_triplet(images, patches, keys, 0.5),
        peer=lambda: reference.cp_triplet(images, patches, keys, 0.5),
        agree=agree,
        items=BATCH,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_triplet_kernel(dtype: torch.dtype, against: Callable[..., float], keep: Callable[..., None]) -> None:
    """Beside eager torch, and beside a plain copy of as many bytes as the kernel has to read and write."""
    images, patches, keys = (tensor.cuda() for tensor in draw(GPU_BATCH))

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        return cp_triplet(images, patches, keys, 0.5, dtype=dtype)

    def theirs() -> tuple[torch.Tensor, torch.Tensor]:
        triplet, visible = reference.cp_triplet(images, patches, keys, 0.5)
        return triplet.to(dtype), visible

    def agree() -> None:
        (found, share), (expected, expected_share) = ours(), theirs()
        rounding = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
        assert torch.equal(found == 0, expected == 0)
        torch.testing.assert_close(share, expected_share, rtol=0, atol=1e-6)

    against(candidate=ours, peer=theirs, agree=agree, items=GPU_BATCH, calls=20)
    moved = images.nbytes + patches.nbytes + 3 * images.numel() * dtype.itemsize
    milliseconds, copied = device_ms(ours), copy_bytes_per_ms()
    keep(
        device_us=1e3 * milliseconds,
        gigabytes_per_second=moved / milliseconds / 1e6,
        copy_gigabytes_per_second=copied / 1e6,
        share_of_copy_bandwidth=moved / milliseconds / copied,
    )
