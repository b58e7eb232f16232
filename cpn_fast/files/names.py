"""Names from strangers' files, looked at before the file system or a table sees them."""

from __future__ import annotations

from pathlib import PureWindowsPath
from typing import Any

MAX_PATH_BYTES = 4000
MAX_PART_BYTES = 255
MAX_CLASS_LENGTH = 100
_CONTROLS = "".join(map(chr, (*range(32), 127)))


def quoted(value: Any, limit: int = 80) -> str:
    """`repr` of a value for a message, cut where it is long."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def path_fault(name: Any) -> str:
    """What is wrong with a file's path relative to a folder.

    Args:
        name: as the file says, with forward slashes.

    Returns:
        "" where it can name a file in the folder; else e.g. "is outside the folder".
    """
    if not isinstance(name, str):
        return f"is no text but {type(name).__name__}"
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts and not name.startswith("/"):
        return "is empty"
    if fault := _text_fault(name, "\0"):
        return fault
    longest = max((len(part.encode("utf-8")) for part in parts), default=0)
    if len(name.encode("utf-8")) > MAX_PATH_BYTES or longest > MAX_PART_BYTES:
        return f"is of {len(name)} characters, longer than a file's name can be"
    if name.startswith("/") or ".." in parts or _has_drive(name):
        return "is outside the folder"
    return ""


def _has_drive(name: str) -> bool:
    """Whether Windows would look on a drive or a server of its own."""
    return (":" in name or name[:1] in "\\/") and bool(PureWindowsPath(name).drive)


def class_fault(name: Any) -> str:
    """What is wrong with the name of a class, e.g. "is empty"; "" where it can be one."""
    if not isinstance(name, str):
        return f"is no text but {type(name).__name__}"
    if not name.strip():
        return "is empty"
    if len(name) > MAX_CLASS_LENGTH:
        return f"is of {len(name)} characters, expected at most {MAX_CLASS_LENGTH}"
    return _text_fault(name, _CONTROLS)


def _text_fault(name: str, forbidden: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is no character"
    control = next((character for character in name if character in forbidden), None)
    return "" if control is None else f"holds the control character {control!r}"
