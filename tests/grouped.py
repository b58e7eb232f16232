"""Settings of a training under their flat names, as the command line has them, into the groups of its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cpn_fast.config.training import DeviceOptions, OptimizerOptions

GROUPS = {"optimizer": OptimizerOptions, "device": DeviceOptions}


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of the optimizer and the device in their groups."""
    result = dict(values)
    for group, kind in GROUPS.items():
        held = {field.name: result.pop(field.name) for field in fields(kind) if field.name in result}
        if held:
            result[group] = kind(**held)
    return result
