"""What folders of masks share: settings that later calls must keep to, and errors of writing that say what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json

SETTINGS_NAME = "settings.json"
MANIFEST_NAME = "manifest.jsonl"


def check_is_folder(output: Path) -> None:
    """Refuse an output folder in whose place, or in that of a folder around it, a file stands. Raises DataError."""
    found = next((place for place in (output, *output.parents) if place.exists()), None)
    if found is not None and not found.is_dir():
        raise DataError(
            f"output {output}: {'it' if found == output else found} is a file; expected a folder, there or new: give "
            "another --output"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a `settings.json`.

    Raises:
        DataError: if it cannot be read or is no JSON object.
    """
    stored = read_json(path, "settings", "use --overwrite to make everything in its folder again")
    if not isinstance(stored, dict):
        raise DataError(
            f"{path}: found {type(stored).__name__}, expected a JSON object; use --overwrite to make "
            "everything in its folder again"
        )
    return stored


def record_settings(output: Path, settings: Mapping[str, Any], overwrite: bool, made: str = "labelled") -> None:
    """Record the settings in the output folder, or refuse to mix masks of two settings there.

    Args:
        output: the folder; made where it is not there.
        settings: JSON-able values (lists, no tuples): everything that decides what a mask looks like.
        overwrite: forget what was done there.
        made: what happened to the masks, for the error.

    Raises:
        DataError: if the folder holds other settings.
    """
    path = output / SETTINGS_NAME
    if overwrite:
        (output / MANIFEST_NAME).unlink(missing_ok=True)
    elif path.exists():
        stored = read_settings(path)
        if different := settings_that_differ(stored, settings):
            raise DataError(
                f"{output} was {made} with other settings: {different}; give the same ones, another --output, or "
                "--overwrite to make everything again"
            )
    atomic_write_text(path, json.dumps(dict(settings), indent=2, ensure_ascii=False) + "\n")


def settings_that_differ(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The settings that are not the same in both, with both values; "" where all are."""
    return ", ".join(
        f"{key} (there: {stored.get(key)!r}, now: {given.get(key)!r})"
        for key in {**given, **stored}
        if stored.get(key) != given.get(key)
    )


@contextmanager
def raise_io_errors_as(output: Path, what: str) -> Iterator[None]:
    """Turn an `OSError` of the block (a full disk, a missing permission) into a `DataError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or output}: cannot write {what} ({error.strerror}); free disk space or correct the "
            "permissions, and rerun the same command to resume"
        ) from error
