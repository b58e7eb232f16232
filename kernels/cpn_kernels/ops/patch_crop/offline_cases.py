"""The kernel of patch crops as it is launched, for compilation without a GPU."""

from __future__ import annotations

from cpn_kernels.offline import Case
from cpn_kernels.ops.patch_crop import triton_kernel


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """Both dtypes of maps."""
    return [
        Case(
            f"patch_crop[{kind}]",
            triton_kernel.crop_kernel,
            {"maps": f"*{kind}", "crops": "*i64", "output": "*i32", "side": "i32"},
            {"UNSIGNED": kind == "i16", "ROWS": triton_kernel.ROWS, "COLUMNS": triton_kernel.COLUMNS},
            common=kind == "i16",
        )
        for kind in ("i16", "i32")
    ]
