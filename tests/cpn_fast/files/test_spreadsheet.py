"""Spreadsheets: written by openpyxl, read by python-calamine; and damaged ones."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.labels_csv import read_label_table

Rows = list[list[Any]]


def book(path: Path, rows: Rows, other: Rows | None = None) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    made = openpyxl.Workbook()
    for row in rows:
        made.active.append(row)
    for row in other or ():
        (made["More"] if "More" in made.sheetnames else made.create_sheet("More")).append(row)
    made.save(path)
    return path


GOOD: dict[str, tuple[Rows, dict[str, tuple[str, ...] | None]]] = {
    "plain": ([["image", "labels"], ["a.jpg", "cat;dog"], ["ü b.jpg", "dog"]],
              {"a.jpg": ("cat", "dog"), "ü b.jpg": ("dog",)}),
    "other names": ([["Path", "TAGS"], ["a.jpg", "dog"]], {"a.jpg": ("dog",)}),
    "a line per label": ([["file", "class"], ["a.jpg", "dog"], ["a.jpg", "cat"]], {"a.jpg": ("cat", "dog")}),
    "one-hot numbers": ([["filename", "cat", "dog"], ["a.jpg", 1, 0], ["b.jpg", 0, 0]],
                        {"a.jpg": ("cat",), "b.jpg": ()}),
    "one-hot truth": ([["filename", "cat", "dog"], ["a.jpg", True, False]], {"a.jpg": ("cat",)}),
    "numbers as names": ([["image", "label"], [17, 3], [18, 4]], {"17": ("3",), "18": ("4",)}),
    "blank rows and columns": ([["image", "label", None], [None, None, None], ["a.jpg", "dog", None]],
                               {"a.jpg": ("dog",)}),
    "an empty cell": ([["image", "label"], ["a.jpg", None], ["b.jpg", "dog"]], {"a.jpg": None, "b.jpg": ("dog",)}),
}  # fmt: skip

BAD: dict[str, tuple[Rows, str]] = {
    "no header": (
        [["a.jpg", "dog"], ["b.jpg", "cat"]],
        r"line 1: no column image and labels in the header 'a\.jpg,dog'",
    ),
    "empty": ([], "line 1: no column image and labels"),
    "two columns of one name": ([["image", "image", "label"], ["a", "b", "c"]], "line 1: column image twice"),
    "beyond the header": ([["image", "label"], ["a.jpg", "cat", "dog"]], "line 2: 3 cells, expected 2"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_sheets(tmp_path: Path, name: str) -> None:
    rows, expected = GOOD[name]
    table = read_label_table(book(tmp_path / "labels.xlsx", rows, other=[["nothing", "of", "it"]]))
    found = {
        row.image: None if row.labels is None else tuple(table.classes[n] for n in row.labels) for row in table.rows
    }
    assert found == expected and table.errors == ()
    assert table.form.startswith("sheet 'Sheet'; image in ")


@pytest.mark.parametrize("name", BAD)
def test_bad_sheets(tmp_path: Path, name: str) -> None:
    rows, message = BAD[name]
    with pytest.raises(DataError, match=rf"labels\.xlsx, {message}"):
        read_label_table(book(tmp_path / "labels.xlsx", rows))


def test_lines_are_those_of_the_sheet(tmp_path: Path) -> None:
    rows = [["image", "label"], [None, None], ["a.jpg", "cat"], ["../b.jpg", "cat"]]
    ((line, message),) = read_label_table(book(tmp_path / "labels.xlsx", rows)).errors
    assert line == 4 and message.startswith("image '../b.jpg' is outside the folder")


def packed(size: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", b"0" * size)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("labels.xlsx", b"", "no spreadsheet that can be read"),
        ("labels.xlsx", b"PK", "no spreadsheet that can be read"),
        ("labels.xlsx", b"image,labels\na.jpg,cat\n", "no spreadsheet that can be read"),
        ("labels.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(200), "no spreadsheet that can be read"),
        ("labels.ods", packed(10), "no spreadsheet that can be read"),
        ("labels.xlsx", packed(201_000_000), r"unpacks to 201,000,000 bytes, over 200,000,000"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    pytest.importorskip("python_calamine")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: {message}") as error:
        read_label_table(tmp_path / name)
    assert "\n" not in str(error.value)


def test_damage_anywhere_is_a_data_error(tmp_path: Path) -> None:
    path = book(tmp_path / "labels.xlsx", GOOD["plain"][0])
    data = path.read_bytes()
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            read_label_table(path)
        except DataError as error:
            assert "\n" not in str(error)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    (tmp_path / "labels.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"labels\.xlsx: .* pip install 'cpn-fast\[xlsx\]', or save it as CSV"):
        read_label_table(tmp_path / "labels.xlsx")
