"""`manifest.jsonl`: one line per image that was worked on, so that a second run skips what is done."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from cpn_fast.files.errors import DataError
from cpn_fast.files.names import path_fault, quoted
from cpn_fast.files.regular import read_regular

_log = logging.getLogger(__name__)

_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    "status": (str,),
    "image": (str,),
    "mask": (str,),
    "error": (str,),
    "width": (int,),
    "height": (int,),
    "labels": (list, NoneType),
    "predicted": (list, NoneType),
    "labels_from": (str, NoneType),
    "foreground": _NUMBER,
    "confidence": _NUMBER,
    "changed": _NUMBER,
    "input_sha256": (str, NoneType),
    "scores_sha256": (str, NoneType),
}
"""The types that an entry's values have where they are there."""


class Manifest:
    """An append-only log of JSON lines. Threads, and processes on one machine, may append at the same time.

    Args:
        path: the file; it and its folder are made by the first `append`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line, on disk when this returns.

        Args:
            entry: JSON-able values; `id` (str) and `status` (str, "ok" when the image is done) are required.

        Raises:
            DataError: if `id` or `status` is missing.
        """
        missing = [key for key in ("id", "status") if not isinstance(entry.get(key), str)]
        if missing:
            raise DataError(
                f"{self.path}: a manifest entry needs a string {' and '.join(missing)}; found {dict(entry)!r}"
            )
        line = (json.dumps(dict(entry), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        with self._lock:
            descriptor = self._open()
            os.write(descriptor, line)  # one write to a file opened for appending: lines of two writers never mix
            os.fsync(descriptor)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The last entry of every id, in the order of first appearance.

        A line torn by a crash, or with a value that no writer gives, is skipped with a warning. An entry has `id`,
        which names a file below a folder, and `status`; its other values are of the right type where they are there.

        Raises:
            DataError: if the file is there and cannot be read.
        """
        try:
            lines = read_regular(self.path).split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DataError(f"{self.path}: cannot read it ({error.strerror}); expected a manifest") from None
        entries: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line.decode("utf-8"))
                fault = entry_fault(entry)
            except (ValueError, RecursionError):
                fault = "no JSON"
            if fault:
                _log.warning(
                    "%s, line %d: not a manifest entry (%s), skipped (its image is done again)",
                    self.path, number, fault,
                )  # fmt: skip
            else:
                entries[entry["id"]] = entry
        return entries

    def stream(self) -> Iterator[dict[str, Any]]:
        """The last entry of every id, one after the other. Raises as `entries`."""
        return iter(self.entries().values())

    def done(self) -> set[str]:
        """Ids whose last status is "ok"."""
        return {name for name, entry in self.entries().items() if entry.get("status") == "ok"}

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")  # ends a torn line, so that the next entry is not glued to it
        return self._descriptor


def entry_fault(entry: Any) -> str:
    """What is wrong with a line's value; "" where it is an entry."""
    if not isinstance(entry, dict):
        return f"no object but {type(entry).__name__}"
    if fault := path_fault(entry.get("id")):
        return f"its id {fault}"
    for key, kinds in _TYPES.items():
        value = entry.get(key)
        if key not in entry:
            if key == "status":
                return "no status"
        elif not isinstance(value, kinds) or isinstance(value, bool):
            return f"{key} is {quoted(value)}"
        elif isinstance(value, list) and not all(isinstance(item, str) for item in value):
            return f"{key} holds other things than names"
    return ""
