"""Digests of files that decide over results."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import open_regular


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file as hexadecimal; None where it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, DataError):
        return None


@cache
def weights_sha256(path: Path) -> str:
    """SHA-256 of backbone weights, hexadecimal; a file is read once per process.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected backbone weights: see --weights"
        ) from error
