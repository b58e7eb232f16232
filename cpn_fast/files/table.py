"""Tables as people save them: CSV of any common separator and encoding, and spreadsheets, as rows of text."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import open_regular
from cpn_fast.files.spreadsheet import SPREADSHEET_SUFFIXES, read_spreadsheet

CSV_SUFFIXES = frozenset({".csv", ".tsv"})
TABLE_SUFFIXES = CSV_SUFFIXES | SPREADSHEET_SUFFIXES

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SAMPLE_BYTES = 4096
_HELD_BYTES = 1 << 22
"""Of a file that is read once and held, so that another may take its place meanwhile; larger ones are read again."""

_Rows = Iterator[tuple[int, Sequence[str]]]


@dataclass(frozen=True)
class Table:
    """The cells of a file.

    Attributes:
        header: the first row's cells, stripped; empty ones at its end are dropped.
        rows: (line number from 1, one stripped cell per column of the header), blank rows left out. A large CSV is read
            again each time they are gone through, so that they are never all in memory; this raises DataError for a row
            that does not fit the header, or where such a file has changed since.
        form: what the file is, e.g. "separated by semicolons, UTF-16".
        notes: what was guessed.
    """

    header: tuple[str, ...]
    rows: Iterable[tuple[int, tuple[str, ...]]]
    form: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A file of text whose encoding is known.

    Attributes:
        path: the file.
        encoding: of Python.
        form: the encoding's name.
        notes: what was guessed.
        mark: bytes before the text.
        stamp: size and time of the file as its encoding was found.
        content: all of it, where it is held.
    """

    path: Path
    encoding: str
    form: str
    notes: tuple[str, ...]
    mark: int
    stamp: tuple[int, int]
    content: bytes | None = None

    def open(self) -> TextIO:
        """The text from its beginning, with the line ends that it has. Raises DataError where the file has changed."""
        if self.content is not None:
            held = io.BytesIO(self.content)
            held.seek(self.mark)
            return io.TextIOWrapper(held, self.encoding, newline="")
        try:
            file = open_regular(self.path)
            if _stamp(file) == self.stamp:
                file.seek(self.mark)
                return io.TextIOWrapper(file, self.encoding, newline="")
            file.close()
        except OSError as error:
            raise DataError(f"{self.path}: cannot read it again ({error.strerror}); run the command again") from None
        raise DataError(f"{self.path}: changed while it was read; run the command again")


def read_table(path: Path, what: str, remedy: str) -> Table:
    """Read a CSV (by its separator and encoding) or, by its suffix, the first sheet of a spreadsheet.

    Args:
        path: the file.
        what: what was expected, for errors.
        remedy: ends the error for a row with more or fewer cells than the header.

    Raises:
        DataError: if it cannot be read, or its encoding is unknown; its rows raise it, too.
    """
    if path.suffix.lower() in SPREADSHEET_SUFFIXES:
        sheet, found = read_spreadsheet(path, what)
        remedy = "put every value into a column of the header"
        return _table(path, lambda: iter(found), f"sheet {sheet!r}", (), remedy)
    text = find_encoding(path, what)
    separator, skipped = _separator(text)
    form = f"separated by {_SEPARATORS[separator]}, {text.form}"
    return _table(path, lambda: _csv_rows(text, separator, skipped), form, text.notes, remedy)


def find_encoding(path: Path, what: str) -> Text:
    """A file's text, with a note where its encoding was guessed.

    By its mark UTF-8 or UTF-16; without one UTF-8, else UTF-16 where every other byte of the start is zero, else
    Windows-1252, in which spreadsheets of western languages save CSV.

    Raises:
        DataError: if it is missing, cannot be read, or is text in none of these.
    """
    try:
        with open_regular(path) as file:
            text = Text(path, "utf-8", "UTF-8", (), 0, _stamp(file))
            content = file.read(min(text.stamp[0], _HELD_BYTES) + 1)
            if len(content) <= _HELD_BYTES:
                return _with_encoding(io.BytesIO(content), replace(text, content=content))
            return _with_encoding(file, text)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror}); expected {what}") from None


def _with_encoding(file: BinaryIO, text: Text) -> Text:
    """A text that was taken for UTF-8 with the encoding that its file has."""
    file.seek(0)
    sample = file.read(_SAMPLE_BYTES)
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            _check_decodes(file, text.path, encoding, len(mark))
            return replace(text, encoding=encoding, form=encoding.upper()[:6].rstrip("-"), mark=len(mark))
    half = len(sample) // 2
    for encoding, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if half and zeros.count(0) > 0.4 * half:
            _check_decodes(file, text.path, encoding, 0)
            note = f"{text.path}: no byte order mark; read as {encoding}"
            return replace(text, encoding=encoding, form="UTF-16", notes=(note,))
    file.seek(0)
    if note := _not_utf8(file, text.path):
        return replace(text, encoding="cp1252", form="Windows-1252 (guessed)", notes=(note,))
    return text


def _stamp(file: io.BufferedReader) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns


def _check_decodes(file: BinaryIO, path: Path, encoding: str, begin: int) -> None:
    """Raise DataError unless a file is text in an encoding from a byte on."""
    file.seek(begin)
    decoder, place = codecs.getincrementaldecoder(encoding)(), 0
    while True:
        chunk = file.read(1 << 20)
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = place - held + error.start
            raise DataError(f"{path}: not {encoding} from byte {at} on; save it as UTF-8") from None
        if not chunk:
            return
        place += len(chunk)


def _not_utf8(file: BinaryIO, path: Path) -> str:
    """A note where a file is no UTF-8 but Windows-1252, else "". Raises DataError where it is neither."""
    number = 0
    for line in file:  # no character of UTF-8 has the byte of a line's end in it
        number += 1
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            break
    else:
        return ""
    file.seek(0)
    try:
        for chunk in iter(partial(file.read, 1 << 20), b""):
            chunk.decode("cp1252")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}, line {number}: not UTF-8 (byte {byte:#04x}), nor UTF-16 or Windows-1252; save it as UTF-8"
        ) from None
    shown = line.decode("cp1252").strip()[:60]
    return (
        f"{path}, line {number}: not UTF-8 (byte {byte:#04x}), read as Windows-1252, a guess: is {shown!r} right? else "
        "save it as UTF-8"
    )


def _separator(text: Text) -> tuple[str, int]:
    """The separator that cuts the first line that is not blank into the most cells; how many lines only name it."""
    with text.open() as file:
        first = file.readline()
        if first.strip().lower() in {f"sep={mark}" for mark in _SEPARATORS} | {"sep="}:  # Excel's own first line
            return first.strip("\r\n")[4:5] or "\t", 1
        while first and not first.strip():
            first = file.readline()
    counts = {mark: _count_cells(first, mark) for mark in _SEPARATORS}
    return max(counts, key=lambda mark: counts[mark]), 0


def _count_cells(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator), []))
    except csv.Error:
        return 0  # said with its line when the file is read


def _csv_rows(text: Text, separator: str, skipped: int) -> _Rows:
    with text.open() as file:
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file, delimiter=separator, strict=True)
        start = 1
        try:
            for cells in reader:
                line, start = start, reader.line_num + 1
                yield line + skipped, cells
        except csv.Error as error:
            line = reader.line_num + skipped
            raise DataError(f"{text.path}, line {line}: not a CSV line ({error}); check its quotes") from None
        except UnicodeDecodeError:
            raise DataError(f"{text.path}: changed while it was read; run the command again") from None


def _table(path: Path, read: Callable[[], _Rows], form: str, notes: tuple[str, ...], remedy: str) -> Table:
    filled = next((cells for _, raw in read() if any(cells := [cell.strip() for cell in raw])), [])
    header = tuple(_without_blank_end(filled))
    return Table(header, _FittingRows(path, read, header, remedy), form, notes)


@dataclass(frozen=True)
class _FittingRows(Iterable[tuple[int, tuple[str, ...]]]):
    """The rows below the header, checked as they are read."""

    path: Path
    read: Callable[[], _Rows]
    header: tuple[str, ...]
    remedy: str

    def __iter__(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        width, below = len(self.header), False
        for line, raw in self.read():
            cells = [cell.strip() for cell in raw]
            if not any(cells):
                continue
            if not below:
                below = True
                continue
            while len(cells) > width and not cells[-1]:
                cells.pop()
            if len(cells) != width:
                raise DataError(
                    f"{self.path}, line {line}: {len(cells)} cells, expected {width} ({','.join(self.header)[:200]}); "
                    f"{self.remedy}"
                )
            yield line, tuple(cells)


def _without_blank_end(cells: list[str]) -> list[str]:
    while cells and not cells[-1]:
        cells = cells[:-1]
    return cells
