"""The names of maps and scales, as scores and files know them."""

from __future__ import annotations

from typing import Literal

MapName = Literal["cam", "rcam"]


MULTI = "multi"
"""Name of the maps summed over all scales, beside the single scales "0.5", "1", ..."""


def scale_name(scale: float) -> str:
    """How a single scale is called in tables and files: "0.5", "1", "1.5"."""
    return f"{scale:g}"
