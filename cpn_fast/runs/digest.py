"""Digests of a run's weights."""

from __future__ import annotations

import hashlib

from cpn_fast.files.regular import open_regular
from cpn_fast.runs.folder import RunFolder


def weights_digest(run: RunFolder) -> str:
    """SHA-256 of the weights that `run.load_model` loads, as hexadecimal."""
    path = run.model_path if run.model_path.is_file() else run.checkpoint_path
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
