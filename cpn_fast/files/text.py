"""Text files that people write, read with errors that they can act on."""

from __future__ import annotations

from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import read_regular


def read_text(path: Path, what: str) -> str:
    """A UTF-8 text file (with or without byte order mark). Raises DataError that says what was expected."""
    try:
        return read_regular(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {what}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror}); expected {what}") from None


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines that are not blank, stripped, each with its number from 1. Raises DataError as `read_text` does."""
    text = read_text(path, what)
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
