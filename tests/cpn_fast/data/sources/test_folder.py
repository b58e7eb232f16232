from __future__ import annotations

import pickle
import re
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.data.check.command import check_source
from cpn_fast.data.sources.classes import ClassFolderSource
from cpn_fast.data.sources.folder import FolderSource, hash_split
from cpn_fast.data.sources.folder_images import FolderImages, FolderRecords
from cpn_fast.files import hash_index
from cpn_fast.files.errors import DataError
from cpn_fast.files.label_rows import LabelRow
from cpn_fast.files.labels_csv import read_label_table
from cpn_fast.files.masks import write_mask
from cpn_fast.files.packed import PackedTexts


def folder(root: Path, images: list[str], csv: str | None = None) -> Path:
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(root / name, format="PNG")
    if csv is not None:
        (root / "labels.csv").write_text(csv, encoding="utf-8")
    return root


def test_ids_labels_and_the_split_column(tmp_path: Path) -> None:
    csv = "image,labels,split\na.jpg,dog;cat,train\nsub dir/ü.png,dog,val\n"
    source = FolderSource(folder(tmp_path, ["a.jpg", "sub dir/ü.png", "extra.png"], csv))
    assert source.classes == ("cat", "dog") and source.splits() == ("train", "val", "all")
    assert [(r.id, r.labels) for r in source.records("train")] == [("a", (0, 1))]
    assert [(r.id, r.labels) for r in source.records("val")] == [("sub dir/ü", (1,))]
    # an image that the CSV leaves out is not lost: it is in `all`, unlabelled, and the scan says so
    assert [(r.id, r.labels) for r in source.records("all")] == [("a", (0, 1)), ("extra", None), ("sub dir/ü", (1,))]
    assert source.scan("train").notes == (f"images without labels in {tmp_path / 'labels.csv'}: 1, e.g. extra",)
    assert source.read(source.records("all")[1]).labels is None


def test_names_relative_to_root_or_to_images_with_or_without_suffix(tmp_path: Path) -> None:
    csv = "image,labels\nimages/a.png,x\nb.png,y\nc,x;y\n"
    source = FolderSource(folder(tmp_path, ["images/a.png", "images/b.png", "images/c.v2.png", "images/c.png"], csv))
    labels = {record.id: record.labels for record in source.records("all")}
    assert labels == {"a": (0,), "b": (1,), "c": (0, 1), "c.v2": None}


def test_images_beside_the_images_folder_are_not_lost(tmp_path: Path) -> None:
    source = FolderSource(folder(tmp_path, ["images/a.png", "b.png"], "image,labels\nimages/a.png,x\nb.png,x\n"))
    assert [record.id for record in source.records("all")] == ["b", "images/a"]


def test_without_a_split_column_unlabelled_images_are_only_in_all(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(30)]
    csv = "image,labels\n0.png,\n" + "".join(f"{name},x\n" for name in names[1:29])
    source = FolderSource(folder(tmp_path, names, csv))
    usable = [*source.records("train"), *source.records("val")]
    assert len(usable) == 28 and all(record.labels == (0,) for record in usable)
    assert {record.id for record in source.records("all") if record.labels is None} == {"0", "29"}


def test_hash_split_is_stable(tmp_path: Path) -> None:
    names = [f"image {number}.png" for number in range(200)]
    csv = "image,labels\n" + "".join(f"{name},x\n" for name in names)
    small = FolderSource(folder(tmp_path / "small", names[:50], csv.split("image 50.png")[0]))
    large = FolderSource(folder(tmp_path / "large", names, csv))
    small_val = {record.id for record in small.records("val")}
    large_val = {record.id for record in large.records("val")}
    assert small_val == {name for name in large_val if int(name.split()[1]) < 50}
    assert 20 <= len(large_val) <= 60  # a fifth of 200
    assert len(large.records("train")) + len(large_val) == len(large.records("all")) == 200
    # `printf %s a | b2sum -l 64` ends in 2f, its highest byte: 0x2f / 256 = 0.18; b 0x75, h 0x30 (0.19), i 0x3c (0.23)
    assert {name: hash_split(name) for name in "abhi"} == {"a": "val", "b": "train", "h": "val", "i": "train"}
    assert hash_split(unicodedata.normalize("NFD", "ü")) == hash_split(unicodedata.normalize("NFC", "ü"))


def test_masks_by_name_and_by_column(tmp_path: Path) -> None:
    csv = "image,labels,mask\na.png,x,\nsub/b.png,y,elsewhere/b mask.png\nc.png,x,\n"
    root = folder(tmp_path, ["a.png", "sub/b.png", "c.png"], csv)
    write_mask(root / "masks" / "a.png", np.full((4, 6), 1, dtype=np.uint8))
    write_mask(root / "elsewhere" / "b mask.png", np.full((4, 6), 2, dtype=np.uint8))
    source = FolderSource(root)
    records = {record.id: record for record in source.records("all")}
    assert set(records) == {"a", "sub/b", "c"}  # masks are no images, wherever they are
    values = {name: source.read(record, with_mask=True).mask for name, record in records.items()}
    assert values["c"] is None
    assert (values["a"] == 1).all() and (values["sub/b"] == 2).all()


def test_a_folder_without_csv(tmp_path: Path) -> None:
    source = FolderSource(folder(tmp_path, ["a.png", "b c.jpg"]))
    assert source.classes == () and source.splits() == ("all",)
    assert [(r.id, r.labels) for r in source.records("all")] == [("a", None), ("b c", None)]
    with pytest.raises(DataError, match="no split 'train'; it has all"):
        source.records("train")


def test_an_unlabelled_folder_may_name_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("x\ny\n")
    assert FolderSource(folder(tmp_path, ["a.png"])).classes == ("x", "y")


def test_the_csv_itself_or_any_single_csv(tmp_path: Path) -> None:
    folder(tmp_path, ["a.png"])
    (tmp_path / "mine.csv").write_text("image,labels\na.png,x\n")
    assert FolderSource(tmp_path).classes == ("x",)
    assert FolderSource(tmp_path / "mine.csv").records("all")[0].labels == (0,)
    (tmp_path / "yours.csv").write_text("image,labels\na.png,y\n")
    with pytest.raises(DataError, match=r"several CSV files \(mine\.csv, yours\.csv\); name one"):
        FolderSource(tmp_path)
    assert FolderSource(tmp_path / "yours.csv").classes == ("y",)


def test_a_named_file_needs_no_image_suffix(tmp_path: Path) -> None:
    source = FolderSource(folder(tmp_path, ["a.dat", "b.png"], "image,labels\na.dat,x\nb.png,x\n"))
    assert [record.id for record in source.records("all")] == ["a", "b"]
    assert source.read(source.records("all")[0]).image.shape == (4, 6, 3)


def test_decomposed_file_names_match(tmp_path: Path) -> None:
    root = folder(tmp_path, [unicodedata.normalize("NFD", "hündin.png")], "image,labels\nhündin.png,x\n")
    assert FolderSource(root).records("all")[0].labels == (0,)


def test_every_problem_has_its_file_and_line(tmp_path: Path) -> None:
    csv = (
        "image,labels,split,mask\n"
        "a.png,cat,train,\n"
        "gone.png,cat,train,\n"
        "a,dog,train,\n"
        "b.jpg,cat,train,\n"
        "b.png,bird,train,\n"
        "c.png,dog,all,masks/c.png\n"
    )
    root = folder(tmp_path, ["a.png", "b.png", "c.png", "twin.png", "twin.jpg"], csv)
    (root / "classes.txt").write_text("cat\ndog\n")
    source = FolderSource(root)
    problems = [str(problem) for problem in source.scan("train").problems]
    expected = [
        r"twin\.png: the same id 'twin' as .*twin\.jpg",
        r"labels\.csv, line 6: unknown class 'bird'; known are cat, dog",
        r"labels\.csv, line 3: image 'gone\.png' is not in",
        r"labels\.csv, line 4: image 'a' is already on line 2",
        r"labels\.csv, line 5: image 'b\.jpg' is not in .*there is b\.png: correct the name or remove the line",
        r"labels\.csv, line 7: mask 'masks/c\.png' is not in",
    ]
    assert len(problems) == len(expected), problems
    for pattern in expected:
        assert sum(bool(re.search(pattern, problem)) for problem in problems) == 1, (pattern, problems)
    with pytest.raises(DataError, match="5 more problems"):
        source.records("all")


def test_split_named_all_is_refused(tmp_path: Path) -> None:
    source = FolderSource(folder(tmp_path, ["a.png"], "image,labels,split\na.png,x,all\n"))
    with pytest.raises(DataError, match=r"labels\.csv, line 2: split 'all' is the name for all images"):
        source.records("all")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        FolderSource(tmp_path)


def test_time_grows_with_the_number_of_images_and_not_with_its_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a split column; counted in looks at a row, which a slow machine does not change."""
    count = 300
    rows = "".join(f"{number}.png,x\n" for number in range(count))
    folder(tmp_path, [], f"image,labels\n{rows}")
    for number in range(count):
        (tmp_path / f"{number}.png").touch()
    looks = 0
    plain = LabelRow.__getattribute__

    def counted(row: LabelRow, name: str) -> object:
        nonlocal looks
        looks += 1
        return plain(row, name)

    monkeypatch.setattr(LabelRow, "__getattribute__", counted)
    assert len(FolderSource(tmp_path).records("all")) == count
    assert looks < 60 * count


@pytest.mark.parametrize(
    ("suffix", "remedy"),
    [
        (".bmp", "save them as PNG with their numbers unchanged"),
        (".tif", "save them as PNG with their numbers unchanged"),
        (".gif", "save them as PNG with their numbers unchanged"),
        (".jpg", "JPEG changes the class numbers, so these are lost: export the masks again as PNG"),
    ],
)
def test_masks_that_are_no_png_are_said_and_not_silently_missing(
    tmp_path: Path, suffix: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path, ["a.png", "sub/b.png", "c.png"], "image,labels\na.png,x\nsub/b.png,x\nc.png,x\n")
    write_mask(tmp_path / "masks/c.png", np.ones((4, 6), np.uint8))
    (tmp_path / "masks/sub").mkdir()
    for name in ("a", "sub/b", "c", "unrelated"):  # that of c has a PNG beside it, which is read
        Image.new("L", (6, 4)).save(tmp_path / f"masks/{name}{suffix}")
    source = FolderSource(tmp_path)
    said = f"2 masks in {tmp_path / 'masks'} are no PNG and are not read, such as a{suffix}; {remedy}"
    assert source.scan("all").warnings == (said,)
    assert [record.id for record in source.records("all") if record.mask_path] == ["c"]
    source.records("train" if "train" in source.splits() else "val")
    assert caplog.messages == [said]  # once
    assert said in check_source(source, measure=False).warnings


def test_masks_of_class_folders_that_are_no_png_are_said(tmp_path: Path) -> None:
    folder(tmp_path, ["x/a.png", "y/b.png"])
    (tmp_path / "masks/x").mkdir(parents=True)
    Image.new("L", (6, 4)).save(tmp_path / "masks/x/a.bmp")
    assert "such as a.bmp; save them as PNG" in ClassFolderSource(tmp_path).scan("all").warnings[0]


def test_a_mask_named_by_the_csv_as_jpeg_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, ["a.png"], "image,labels,mask\na.png,x,m.jpg\n")
    Image.new("L", (6, 4)).save(tmp_path / "m.jpg")
    source = FolderSource(tmp_path)
    with pytest.raises(DataError, match=r"m\.jpg: a mask as JPEG, which changes the class numbers; export it again"):
        source.read(source.records("all")[0], with_mask=True)


def test_names_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv = "image,labels\nc.png,z\na,x\nsub/b.png,y\n"
    root = folder(tmp_path, ["a.png", "sub/b.png", "c.png", "twin.png", "twin.jpg"], csv)
    monkeypatch.setattr(hash_index, "_hash", lambda name: 5)
    source = FolderSource(root)
    (problem,) = source.scan("all").problems
    assert str(problem).startswith(f"{root / 'twin.png'}: the same id 'twin' as {root / 'twin.jpg'}")
    (root / "twin.png").unlink()
    records = FolderSource(root).records("all")
    assert [(record.id, record.labels) for record in records] == [
        ("a", (0,)), ("c", (2,)), ("sub/b", (1,)), ("twin", None),
    ]  # fmt: skip
    assert isinstance(records, FolderRecords)
    assert records.find("sub/b") == records[2] and records.find("b") is None
    assert records[-1] == records[3] and list(records[1:3]) == [records[1], records[2]]


def test_a_source_is_sent_without_its_records_and_looks_again_where_it_is_asked(tmp_path: Path) -> None:
    """Workers of a cluster, and helpers for every few images, get it to read single records."""
    csv = "image,labels\n" + "".join(f"{number}.png,x\n" for number in range(100))
    source = FolderSource(folder(tmp_path, [f"{number}.png" for number in range(100)], csv))
    records = source.records("all")
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    there = pickle.loads(sent)
    assert there.classes == ("x",) and there.read(records[0]).image.shape == (4, 6, 3)
    assert list(there.records("all")) == list(records) == list(pickle.loads(pickle.dumps(records)))


def test_an_image_takes_some_tens_of_bytes(tmp_path: Path) -> None:
    """With its row, its place in the index and in two splits; a path and a record for each would be above 1000."""
    count = 20_000
    path = tmp_path / "labels.csv"
    path.write_text("image,labels\n" + "".join(f"{number:06d}.png,x;y\n" for number in range(count)))
    rows = read_label_table(path).rows
    tracemalloc.start()
    try:
        names = PackedTexts()
        for number in range(count):
            names.append(f"{number:06d}.png")
        images = FolderImages(tmp_path, names, tmp_path, rows)
        for number in range(count):
            images.give_row(number, number)
        assert images.find("000007") == 7
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.record(5).labels == (0, 1) and images.record(5).image_path == tmp_path / "000005.png"
    assert held < 45 * count and peak < 60 * count
