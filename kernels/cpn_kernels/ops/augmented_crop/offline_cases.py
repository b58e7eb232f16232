"""The kernels of augmented crops as they are launched, for compilation without a GPU."""

from __future__ import annotations

from cpn_kernels.offline import Case
from cpn_kernels.ops.augmented_crop import triton_kernel

_TILE = {"ROWS": triton_kernel.ROWS, "COLUMNS": triton_kernel.COLUMNS}
_TYPES = {
    "pixels": "*u8", "weights": "*i32", "crops": "*i64", "amounts": "*fp32", "buffer": "*u8", "totals": "*i64",
    "output": "*u8", "side": "i32", "fill_red": "i32", "fill_green": "i32", "fill_blue": "i32",
}  # fmt: skip


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """The three launches."""
    kernels = {
        "across": triton_kernel.across_kernel,
        "down": triton_kernel.down_kernel,
        "finish": triton_kernel.finish_kernel,
    }
    found = []
    for name, kernel in kernels.items():
        types = {argument: kind for argument, kind in _TYPES.items() if argument in kernel.arg_names}
        found.append(Case(f"augmented_crop.{name}", kernel, types, _TILE, dict(triton_kernel.UNFUSED), common=True))
    return found
