"""Tables as people save them: CSV of any common separator and encoding, and spreadsheets, as rows of text."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import read_regular
from cpn_fast.files.spreadsheet import SPREADSHEET_SUFFIXES, read_spreadsheet

CSV_SUFFIXES = frozenset({".csv", ".tsv"})
TABLE_SUFFIXES = CSV_SUFFIXES | SPREADSHEET_SUFFIXES

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Table:
    """The cells of a file.

    Attributes:
        header: the first row's cells, stripped; empty ones at its end are dropped.
        rows: (line number from 1, one stripped cell per column of the header), blank rows left out.
        form: what the file is, e.g. "separated by semicolons, UTF-16".
        notes: what was guessed.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    form: str
    notes: tuple[str, ...] = ()


def read_table(path: Path, what: str, remedy: str) -> Table:
    """Read a CSV (by its separator and encoding) or, by its suffix, the first sheet of a spreadsheet.

    Args:
        path: the file.
        what: what was expected, for errors.
        remedy: ends the error for a row with more or fewer cells than the header.

    Raises:
        DataError: if it cannot be read, its encoding is unknown, or a row does not fit the header.
    """
    if path.suffix.lower() in SPREADSHEET_SUFFIXES:
        sheet, rows = read_spreadsheet(path, what)
        return _table(path, iter(rows), f"sheet {sheet!r}", (), "put every value into a column of the header")
    text, encoding, notes = decode(path, what)
    first, _, rest = text.partition("\n")
    skipped = 0
    separator = ""
    if first.strip().lower() in {f"sep={mark}" for mark in _SEPARATORS} | {"sep="}:  # Excel's own first line
        separator = first.strip("\r")[4:5] or "\t"
        text, skipped = rest, 1
    separator = separator or _separator(text)
    form = f"separated by {_SEPARATORS[separator]}, {encoding}"
    return _table(path, _csv_rows(path, text, separator, skipped), form, notes, remedy)


def decode(path: Path, what: str) -> tuple[str, str, tuple[str, ...]]:
    """The text of a file, the name of its encoding, and a note where that was guessed.

    By its mark UTF-8 or UTF-16; without one UTF-8, else UTF-16 where every other byte of the start is zero, else
    Windows-1252, in which spreadsheets of western languages save CSV.

    Raises:
        DataError: if it is missing, cannot be read, or is text in none of these.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror}); expected {what}") from None
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(path, data[len(mark) :], encoding), encoding.upper()[:6].rstrip("-"), ()
    sample = data[:_SAMPLE_BYTES]
    half = len(sample) // 2
    for encoding, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if half and zeros.count(0) > 0.4 * half:
            return _decoded(path, data, encoding), "UTF-16", (f"{path}: no byte order mark; read as {encoding}",)
    try:
        return data.decode("utf-8"), "UTF-8", ()
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte {byte:#04x}), nor UTF-16 or Windows-1252; save it as UTF-8"
        ) from None
    shown = text.splitlines()[line - 1].strip()[:60]
    note = f"{path}, line {line}: not UTF-8 (byte {byte:#04x}), read as Windows-1252, a guess: is {shown!r} right?"
    return text, "Windows-1252 (guessed)", (f"{note} else save it as UTF-8",)


def _decoded(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {encoding} from byte {error.start} on; save it as UTF-8") from None


def _separator(text: str) -> str:
    """The separator that cuts the first line that is not blank into the most cells."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    counts = {mark: _count_cells(first, mark) for mark in _SEPARATORS}
    return max(counts, key=lambda mark: counts[mark])


def _count_cells(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator), []))
    except csv.Error:
        return 0  # said with its line when the file is read


def _csv_rows(path: Path, text: str, separator: str, skipped: int) -> Iterator[tuple[int, Sequence[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            yield line + skipped, cells
    except csv.Error as error:
        line = reader.line_num + skipped
        raise DataError(f"{path}, line {line}: not a CSV line ({error}); check its quotes") from None


def _table(
    path: Path, rows: Iterator[tuple[int, Sequence[str]]], form: str, notes: tuple[str, ...], remedy: str
) -> Table:
    header: tuple[str, ...] = ()
    kept = []
    for line, raw in rows:
        cells = [cell.strip() for cell in raw]
        if not any(cells):
            continue
        if not header:
            header = tuple(_without_blank_end(cells))
            continue
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} cells, expected {len(header)} ({','.join(header)[:200]}); {remedy}"
            )
        kept.append((line, tuple(cells)))
    return Table(header, tuple(kept), form, notes)


def _without_blank_end(cells: list[str]) -> list[str]:
    while cells and not cells[-1]:
        cells = cells[:-1]
    return cells
