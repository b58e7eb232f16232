"""JSON from disk, with errors that name file, line and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cpn_fast.files.errors import DataError
from cpn_fast.files.text import read_text


def read_json(path: Path, what: str, remedy: str = "is the file complete?") -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        what: what was expected, e.g. "COCO instances JSON".
        remedy: ends the error.

    Raises:
        DataError: if it cannot be read, is no JSON, or nests or counts beyond what can be read.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f", line {error.lineno}: not JSON at column {error.colno} ({error.msg})"
    except RecursionError:
        reason = ": lists or objects nested too deep"
    except ValueError:  # the interpreter's limit for the digits of an integer
        reason = ": an integer of thousands of digits"
    raise DataError(f"{path}{reason}; expected {what}: {remedy}")
