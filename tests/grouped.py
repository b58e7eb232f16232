"""Settings of a training under their flat names, as the command line has them, into the groups of its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cpn_fast.config.training import DeviceOptions, LoopOptions, OptimizerOptions

GROUPS = {"loop": LoopOptions, "optimizer": OptimizerOptions, "device": DeviceOptions}


def grouped(values: Mapping[str, Any], loop: type[LoopOptions] = LoopOptions) -> dict[str, Any]:
    """The values with those of the loop, the optimizer and the device in their groups.

    Args:
        values: by flat name.
        loop: the class of the training's loop, `SegmentLoop` for a segmentation network.
    """
    result = dict(values)
    for group, kind in {**GROUPS, "loop": loop}.items():
        held = {field.name: result.pop(field.name) for field in fields(kind) if field.name in result}
        if held:
            result[group] = kind(**held)
    return result
