"""The random walk's kernel as it is launched, for compilation without a GPU."""

from __future__ import annotations

from cpn_kernels.offline import Case
from cpn_kernels.ops.random_walk.limits import BLOCK, TOGETHER
from cpn_kernels.ops.random_walk.triton_kernel import step_kernel


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """The one form there is. It is no part of a training step, but it is small: CI compiles it too."""
    sizes = ("classes", "height", "width", "blocks", "groups")
    return [
        Case(
            "random_walk",
            step_kernel,
            {"affinity": "*fp32", "maps": "*fp32", "output": "*fp32"} | dict.fromkeys(sizes, "i32"),
            {"BLOCK": BLOCK, "TOGETHER": TOGETHER},
            common=True,
        )
    ]
