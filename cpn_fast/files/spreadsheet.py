"""The first sheet of a spreadsheet as rows of text, by python-calamine (the extra `[xlsx]`)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import read_regular

SPREADSHEET_SUFFIXES = frozenset({".xlsx", ".xlsm", ".xls", ".ods"})

_MAX_BYTES = 200_000_000
_MAX_CELLS = 20_000_000


def read_spreadsheet(path: Path, what: str) -> tuple[str, list[tuple[int, Sequence[str]]]]:
    """Read the first sheet.

    Args:
        path: an xlsx, xlsm, xls or ods file.
        what: what was expected, for errors.

    Returns:
        The sheet's name, and (row number from 1, cells as text); whole numbers without a decimal point.

    Raises:
        DataError: if python-calamine is missing, or the file is missing, damaged, locked or too large.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror}); expected {what}") from None
    try:
        import python_calamine
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: a spreadsheet needs python-calamine: pip install 'cpn-fast[xlsx]', or save it as CSV"
        ) from None
    _check_unpacked_size(path, data)
    try:
        book = python_calamine.load_workbook(io.BytesIO(data))
        name = book.sheet_names[0]
        sheet = book.get_sheet_by_index(0)
        height, width = sheet.total_height, sheet.total_width
        if height * width > _MAX_CELLS:
            raise DataError(f"{path}: sheet {name!r} has {height} x {width} cells, over {_MAX_CELLS:,}; clear its rest")
        rows = sheet.to_python(skip_empty_area=False)
    except DataError:
        raise
    except BaseException as error:  # its panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise DataError(
            f"{path}: no spreadsheet that can be read ({str(error)[:100]}); expected {what}: save it again, or as CSV"
        ) from None
    return name, [(number, [_text(cell) for cell in row]) for number, row in enumerate(rows, start=1)]


def _check_unpacked_size(path: Path, data: bytes) -> None:
    """Refuse a zip that unpacks to more than a table of labels ever is."""
    if not data.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # the reader says what is wrong with it
    if size > _MAX_BYTES:
        raise DataError(f"{path}: unpacks to {size:,} bytes, over {_MAX_BYTES:,}; save its first sheet as CSV")


def _text(cell: Any) -> str:
    if isinstance(cell, bool):
        return "1" if cell else "0"
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)
