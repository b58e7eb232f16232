"""Calling other commands; nothing below the command line imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RunCommand = Callable[[str, Any], Any]
"""Runs a command by its name, e.g. "segment train", with its config, and gives what its function returns; the command
line hands it down to a command that calls others, among them some that lie above it."""
