"""What an earlier version wrote to a run's config.json, in the words of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpn_fast.config.device_options import SWITCHES


def from_earlier_versions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as today's config has them: a switch that was true is "on", and all classes competed for a pixel."""
    said = {True: "on", False: "off"}
    values = {
        name: said[value] if name in SWITCHES and isinstance(value, bool) else value for name, value in values.items()
    }
    options = values.get("options")
    if isinstance(options, dict):
        values["options"] = {"pixel_classes": "all", **options}
    return values
