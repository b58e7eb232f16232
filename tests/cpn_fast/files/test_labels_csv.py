from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.labels_csv import read_label_table, read_labels_csv


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_classes_are_sorted_and_labels_index_them(tmp_path: Path) -> None:
    path = write(tmp_path, "image,labels,split\nb.jpg,dog; cat ;dog,train\na b/ü.png,cow,val\n")
    classes, labels, splits = read_labels_csv(path)
    assert classes == ("cat", "cow", "dog")
    assert labels == {"b.jpg": (0, 2), "a b/ü.png": (1,)}
    assert splits == {"b.jpg": "train", "a b/ü.png": "val"}


def test_given_classes_fix_the_order(tmp_path: Path) -> None:
    path = write(tmp_path, "image,labels\na,dog\n")
    assert read_labels_csv(path, ["zebra", "dog"]) == (("zebra", "dog"), {"a": (1,)}, {})


def test_empty_cell_is_unlabelled_and_background_is_none_of_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path, "image,labels\na,\nb,background\nc,cat;background\n")
    assert read_labels_csv(path)[1] == {"a": None, "b": (), "c": (0,)}


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    text = 'Labels,Image\r\n"cat;dog",".\\sub\\a, b.jpg"\r\n\r\n,\r\ncat,"two ""quotes"".jpg"\r\n'
    classes, labels, _ = read_labels_csv(write(tmp_path, text, "utf-8-sig"))
    assert classes == ("cat", "dog")
    assert labels == {"sub/a, b.jpg": (0, 1), 'two "quotes".jpg': (0,)}


def test_composed_and_decomposed_names_are_one(tmp_path: Path) -> None:
    composed, decomposed = "hündin", unicodedata.normalize("NFD", "hündin")
    table = read_label_table(write(tmp_path, f"image,labels\n{decomposed}.jpg,{decomposed}\n"), [composed])
    row = table.find(f"{composed}.jpg")
    assert row is not None and row.labels == (0,)


def test_find_with_and_without_suffix(tmp_path: Path) -> None:
    table = read_label_table(write(tmp_path, "image,labels\nsub/a.jpg,x\nb.v2,x\n"))
    assert table.find("sub/a.jpg").line == 2  # type: ignore[union-attr]
    assert table.find("b.v2.png").line == 3  # type: ignore[union-attr]
    assert table.find(Path("sub/a.png")) is None and table.find("a.jpg") is None


def test_254_classes_fit_and_thousands_are_an_error(tmp_path: Path) -> None:
    def rows(count: int) -> str:
        return "image,labels\n" + "".join(f"{number}.jpg,class{number}\n" for number in range(count))

    assert len(read_labels_csv(write(tmp_path, rows(254)))[0]) == 254
    with pytest.raises(DataError, match=r"labels\.csv: 255 classes, at most 254 fit"):
        read_labels_csv(write(tmp_path, rows(255)))
    with pytest.raises(DataError, match=r"labels\.csv: 5000 classes, at most 254 fit"):
        read_labels_csv(write(tmp_path, rows(5000)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,labels\na,cat\nb,dgo\n", r"line 3: unknown class 'dgo'; known are cat, dog; did you mean 'dog'\?"),
        ("image,labels\na,cat\nb,dog\na,dog\n", "line 4: image 'a' is already on line 2"),
        ("image,labels\na,dgo\nb,xxx\nc,yyy\n", "line 2: .*2 more lines like this"),
        ('image,labels\n"a\nb",cat\nc,nope\n', "line 4: unknown class 'nope'"),  # the quoted name spans two lines
        ('image,labels\n"a\nb",nope\n', "line 2: unknown class 'nope'"),
        ("image,labels\n,cat\n", "line 2: no image name"),
        ("image,labels\n../a.jpg,cat\n", "line 2: image '../a.jpg' is outside the folder"),
        ("image,labels\n/a.jpg,cat\n", "outside the folder"),
        ("image,labels\nC:\\a.jpg,cat\n", "line 2: image 'C:/a.jpg' is outside the folder"),
        ("image,labels,mask\na,cat,../secret/m.png\n", "line 2: mask '../secret/m.png' is outside the folder; write"),
        ("image,labels,mask\na,cat,/etc/m.png\n", "line 2: mask '/etc/m.png' is outside the folder"),
        (
            f"image,labels\n{'x' * 5000},cat\n",
            r"line 2: image 'x{76,78}\.\.\. is of 5000 characters, longer than a file's",
        ),
        (
            f"image,labels\na,{'x' * 5000}\n",
            r"line 2: label 'x{76,78}\.\.\. is of 5000 characters, expected at most 100",
        ),
        (f"image,labels,split\na,cat,{'x' * 5000}\n", r"line 2: split 'x{76,78}\.\.\. is of 5000 characters"),
        ("image,labels\na\0b,cat\n", r"line 2: image 'a\\x00b' holds the control character|not a CSV line"),
        ("image,labels,mask\na,cat,m\0.png\n", r"line 2: mask 'm\\x00.png' holds the control char|not a CSV line"),
        ("image,labels\na,c\x1bat\n", r"line 2: label 'c\\x1bat' holds the control character '\\x1b'"),
        ("image,labels\na,cat,dog\n", "line 2: 3 cells, expected 2 .*separate labels by `;`"),
        ("image,labels,split\na,cat,\n", "line 2: the split cell is empty"),
        ("image;labels\na;cat\n", "line 1: no column image and labels in the header 'image;labels'"),
        ("image,labels,image\n", "line 1: column image twice"),
        ("", "line 1: no column image and labels"),
        ('image,labels\n"a,cat\n', r"line 2: not a CSV line"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_labels_csv(write(tmp_path, text), ["cat", "dog"])
    assert "labels.csv" in str(error.value)


def test_not_utf8_and_missing(tmp_path: Path) -> None:
    path = write(tmp_path, "image,labels\na,cat\nä,dog\n", "latin-1")
    with pytest.raises(DataError, match=r"labels\.csv, line 3: not UTF-8 \(byte 0xe4\); save it as UTF-8"):
        read_labels_csv(path)
    with pytest.raises(DataError, match=r"nothing\.csv: no such file; expected a CSV"):
        read_labels_csv(tmp_path / "nothing.csv")


def test_table_keeps_good_rows_beside_bad_lines(tmp_path: Path) -> None:
    table = read_label_table(write(tmp_path, "image,labels,mask\na,cat,m/a.png\nb,dgo,\nc,dog,\n"), ["cat", "dog"])
    assert [(row.image, row.line, row.mask) for row in table.rows] == [("a", 2, "m/a.png"), ("c", 4, None)]
    assert [line for line, _ in table.errors] == [3]
