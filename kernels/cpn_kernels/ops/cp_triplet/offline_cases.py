"""The triplet kernel as it is launched, for compilation without a GPU."""

from __future__ import annotations

import itertools

from cpn_kernels.offline import Case
from cpn_kernels.ops.cp_triplet import triton_kernel


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """Both layouts, grid and pixel patches, the dtypes of images and patches in use."""
    floats = ("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b")
    found = []
    for channels_last, grid, kind in itertools.product((True, False), (True, False), ("fp32", "bf16")):
        layout = "channels_last" if channels_last else "contiguous"
        found.append(
            Case(
                f"cp_triplet[{layout}, {'grid' if grid else 'patches'}, {kind}]",
                triton_kernel.triplet_kernel,
                {
                    "images": "*u8",
                    "patches": "*i64" if grid else "*i32",
                    "keys": "*i64",
                    "means": "*fp32",
                    "counts": "*i32",
                    "output": f"*{kind}",
                    "fraction": "*fp32",
                    "threshold": "i64",
                    "view_stride": "i64",
                    "width": "i32",
                    "pixels": "i32",
                }
                | dict.fromkeys(floats, "fp32"),
                {
                    "OWN_MEAN": not grid,
                    "GRID": grid,
                    "CHANNELS_LAST": channels_last,
                    "BLOCK": triton_kernel.BLOCK,
                },
                common=channels_last,
            )
        )
    return found
