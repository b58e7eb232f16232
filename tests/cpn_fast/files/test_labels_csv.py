from __future__ import annotations

import os
import tracemalloc
import unicodedata
from pathlib import Path

import pytest

from cpn_fast.files import hash_index
from cpn_fast.files import table as table_file
from cpn_fast.files.errors import DataError
from cpn_fast.files.labels_csv import read_label_table, read_labels_csv
from cpn_fast.files.table import read_table


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
        (
            "image,labels,split\na,cat,train\nb,dog,val\na,dog,val\n",
            "line 4: image 'a' is already on line 2, there",
        ),
        ("image,labels\na,cat\nb,dog\na,background\n", "line 4: image 'a' is already on line 2, one of both says back"),
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
        ("picture;labels\na;cat\n", "line 1: no column image in the header 'picture,labels'"),
        ("filename,path,labels\na,b,cat\n", "line 1: the columns filename and path could each be the image; call one"),
        ("image,cat,dog\na,1,0\nb,2,1\nc,0,0\nd,1,1\n", "line 3: column 'cat' holds '2'; expected 0 or 1"),
        ("image,size,dog\na,200,big\n", "line 1: no column labels in the header"),
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
    path = write(tmp_path, "image,labels\na,cat\nä\x81,dog\n", "latin-1")
    with pytest.raises(DataError, match=r"labels\.csv, line 3: not UTF-8 \(byte 0xe4\), nor UTF-16 or Windows-1252"):
        read_labels_csv(path)
    with pytest.raises(DataError, match=r"nothing\.csv: no such file; expected a CSV"):
        read_labels_csv(tmp_path / "nothing.csv")


CAT, DOG, BOTH = ("cat",), ("dog",), ("cat", "dog")

FORMS: dict[str, tuple[bytes, dict[str, tuple[str, ...] | None]]] = {
    "commas": (b"image,labels\na.jpg,cat\nb.jpg,cat;dog\n", {"a.jpg": CAT, "b.jpg": BOTH}),
    "semicolons": (b"Filename;Class\r\na.jpg;dog\r\nb.jpg;cat\r\n", {"a.jpg": DOG, "b.jpg": CAT}),
    "tabs": (b"path\ttags\na, 1.jpg\tdog\nb.jpg\tcat\n", {"a, 1.jpg": DOG, "b.jpg": CAT}),
    "what Excel names its separator": (b"sep=;\r\nfile;label\r\na.jpg;dog\r\n", {"a.jpg": DOG}),
    "UTF-8 with its mark": ("\ufefflabel,IMAGE\nhündin,ü.jpg\n".encode(), {"ü.jpg": ("hündin",)}),
    "UTF-16 with its mark": ("image;label\nü.jpg;hündin\n".encode("utf-16"), {"ü.jpg": ("hündin",)}),
    "UTF-16 big endian": ("\ufeffimage\tlabel\nü.jpg\thündin\n".encode("utf-16-be"), {"ü.jpg": ("hündin",)}),
    "UTF-16 without mark": ("image\tlabel\nü.jpg\thündin\n".encode("utf-16-le"), {"ü.jpg": ("hündin",)}),
    "Windows-1252": ("image;label\nü.jpg;hündin – groß\n".encode("cp1252"), {"ü.jpg": ("hündin – groß",)}),
    "a line per label": (b"image,label\na.jpg,dog\nb.jpg,cat\na.jpg,cat\na.jpg,dog\n", {"a.jpg": BOTH, "b.jpg": CAT}),
    "a column per class": (
        b"filename, cat, dog, background\na.jpg, 1, 0, 0\nb.jpg,1,1,0\nc.jpg,0,0,1\nd.jpg,0,0,0\ne.jpg,,,\n",
        {"a.jpg": CAT, "b.jpg": BOTH, "c.jpg": (), "d.jpg": (), "e.jpg": None},
    ),
    "true and false": (b"image;cat;dog\na.jpg;True;False\nb.jpg;1.0;x\n", {"a.jpg": CAT, "b.jpg": BOTH}),
    "several in a cell": (b'image,labels\na.jpg,"cat, dog"\nb.jpg,cat\n', {"a.jpg": BOTH, "b.jpg": CAT}),
    "several with bars": (b"image,labels\na.jpg,cat|dog\nb.jpg,dog|cow\n", {"a.jpg": BOTH, "b.jpg": ("cow", "dog")}),
    "a list as pandas writes it": (b"image,labels\na.jpg,\"['cat', 'dog']\"\n", {"a.jpg": BOTH}),
    "one name with a comma": (b'image,labels\na.jpg,"Paris, Texas"\n', {"a.jpg": ("Paris, Texas",)}),
    "trailing separators": (b"image,label,,\na.jpg,dog,,\nb.jpg,cat,,,,\n,,,\n", {"a.jpg": DOG, "b.jpg": CAT}),
    "boxes": (b"filename,width,height,class,xmin\na.jpg,9,9,dog,1\na.jpg,9,9,dog,4\n", {"a.jpg": DOG}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_csv(tmp_path: Path, form: str) -> None:
    data, expected = FORMS[form]
    (tmp_path / "labels.csv").write_bytes(data)
    classes, labels, _ = read_labels_csv(tmp_path / "labels.csv")
    named = {
        image: None if numbers is None else tuple(classes[number] for number in numbers)
        for image, numbers in labels.items()
    }
    assert named == expected


def test_absolute_paths_within_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path, f"image,labels\n{tmp_path}/sub/a.jpg,cat\n{tmp_path.parent}/b.jpg,cat\n")
    table = read_label_table(path)
    assert [row.image for row in table.rows] == ["sub/a.jpg"]
    assert len(table.errors) == 1 and "b.jpg' is outside the folder" in table.errors[0][1]


@pytest.mark.parametrize(
    ("form", "note"),
    [
        (
            "Windows-1252",
            "line 2: not UTF-8 (byte 0xfc), read as Windows-1252, a guess: is 'ü.jpg;hündin – groß'",
        ),
        ("UTF-16 without mark", "no byte order mark; read as utf-16-le"),
        ("a line per label", "images with several lines, whose labels are joined: 1, e.g. 'a.jpg' (line 2)"),
        ("several in a cell", "1 cells such as 'cat, dog' are read as several labels (cat, dog); if that is one class"),
        ("boxes", "columns that are not read: 'width', 'height', 'xmin'"),
    ],
)
def test_what_is_guessed_is_noted(tmp_path: Path, form: str, note: str) -> None:
    (tmp_path / "labels.csv").write_bytes(FORMS[form][0])
    notes = read_label_table(tmp_path / "labels.csv").notes
    assert sum(note in text for text in notes) == 1, notes


def test_nothing_is_noted_of_a_plain_file(tmp_path: Path) -> None:
    table = read_label_table(write(tmp_path, "image,labels,split\na,cat;dog,train\n"))
    assert table.notes == ()
    assert table.form == "separated by commas, UTF-8; image in 'image', labels in 'labels', split in 'split'"


def test_given_classes_decide_what_a_comma_means(tmp_path: Path) -> None:
    path = write(tmp_path, 'image,labels\na.jpg,"cat, dog"\nb.jpg,cat\n')
    assert read_labels_csv(path, ["cat", "cat, dog"])[1] == {"a.jpg": (1,), "b.jpg": (0,)}
    assert read_labels_csv(path, ["cat", "dog"])[1] == {"a.jpg": (0, 1), "b.jpg": (0,)}
    with pytest.raises(DataError, match=r"line 2: unknown class 'cat, dog'; known are cat, cow"):
        read_labels_csv(path, ["cat", "cow"])


def test_table_keeps_good_rows_beside_bad_lines(tmp_path: Path) -> None:
    table = read_label_table(write(tmp_path, "image,labels,mask\na,cat,m/a.png\nb,dgo,\nc,dog,\n"), ["cat", "dog"])
    assert [(row.image, row.line, row.mask) for row in table.rows] == [("a", 2, "m/a.png"), ("c", 4, None)]
    assert [line for line, _ in table.errors] == [3]


def test_images_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_index, "_hash", lambda name: 5)
    text = "image,labels,split\na,x,train\nb,y,train\na,y,train\nc,x,val\nb,y,val\na,z,train\n"
    table = read_label_table(write(tmp_path, text))
    assert [(row.image, row.labels, row.line, row.split) for row in table.rows] == [
        ("a", (0, 1, 2), 2, "train"), ("b", (1,), 3, "train"), ("c", (0,), 5, "val"),
    ]  # fmt: skip
    ((line, message),) = table.errors
    assert line == 6 and message.startswith("image 'b' is already on line 3, there with the split 'train' and here")
    assert {name: getattr(table.find(name), "line", None) for name in "abcd"} == {"a": 2, "b": 3, "c": 5, "d": None}
    assert table.notes[0].endswith("labels are joined: 2, e.g. 'a' (line 2)")


def test_a_mask_that_only_a_later_line_has(tmp_path: Path) -> None:
    table = read_label_table(write(tmp_path, "image,labels,mask\na,x,\nb,,m.png\nc,background,\n"))
    assert [(row.image, row.labels, row.mask) for row in table.rows] == [
        ("a", (0,), None), ("b", None, "m.png"), ("c", (), None),
    ]  # fmt: skip


@pytest.fixture(params=["held", "read again"])
def small_and_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that is held, and one that is too large for that."""
    if request.param == "read again":
        monkeypatch.setattr(table_file, "_HELD_BYTES", 7)
    return str(request.param)


def test_a_held_table_stays_as_it_was_read(tmp_path: Path) -> None:
    path = write(tmp_path, "image,labels\na,x\n")
    table = read_table(path, "a table", "check it")
    path.unlink()
    assert list(table.rows) == list(table.rows) == [(2, ("a", "x"))]


def test_a_large_file_that_changes_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_HELD_BYTES", 7)
    path = write(tmp_path, "image,labels\na,x\nb,y\n")
    table = read_table(path, "a table", "check it")
    assert [line for line, _ in table.rows] == [line for line, _ in table.rows] == [2, 3]
    path.write_text("image,labels\na,x\nb,z\n")
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=r"labels\.csv: changed while it was read; run the command again"):
        list(table.rows)


@pytest.mark.usefixtures("small_and_large")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"image,labels\n" + b"a,x\n" * 2000 + "ō,x\n".encode() + b"\xe9,x\n", "line 2003: not UTF-8 .byte 0xe9., nor"),
        (b"\xef\xbb\xbfimage,labels\n" + b"a,x\n" * 2000 + b"\xe9,x\n", "not utf-8 from byte 8013 on"),
        (b"\xff\xfei\x00,\x00\n\x00\x00\xdc", "not utf-16-le from byte 6 on"),
    ],
)
def test_a_fault_of_the_encoding_far_down_is_told_with_its_place(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_label_table(tmp_path / "labels.csv")


def test_a_row_takes_some_tens_of_bytes(tmp_path: Path, small_and_large: str) -> None:
    """`images/000000.png`: 17 bytes of a name; a tuple of cells and an object for each would be above 500."""
    count = 20_000
    path = write(tmp_path, "image,labels\n" + "".join(f"images/{number:06d}.png,x;y\n" for number in range(count)))
    read_label_table(path)  # what is loaded once
    tracemalloc.start()
    try:
        table = read_label_table(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table.rows) == count and table.rows[-1].labels == (0, 1)
    of_file = path.stat().st_size if small_and_large == "held" else 0
    assert held < 40 * count and peak < 70 * count + of_file
