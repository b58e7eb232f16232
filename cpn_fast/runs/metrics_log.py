"""The step records of a run, one JSON line each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOSSES = ("loss", "cls", "tcp", "cpcr", "er", "ecr", "min_pool", "pixels")
"""The loss of a CAM network's training and its parts, as records and charts name them."""


class MetricsLog:
    """Appends records to metrics.jsonl, one JSON object a line.

    Args:
        path: the file; it is made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; it survives the end of this process, not yet that of the machine (see `sync`)."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Put all records on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()
