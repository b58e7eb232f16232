"""Data sets in shards, written by tarfile and pyarrow alone and compared with the arrays that they were made of."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cpn_fast.data.check.command import check_source
from cpn_fast.data.sources import shards
from cpn_fast.data.sources.base import FileSource
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError

SIZE = (12, 16)
Example = tuple[str, dict[str, bytes]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPN_CACHE", str(tmp_path / "cache"))


def png(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def mask(seed: int, top: int = 3) -> np.ndarray:
    return np.random.default_rng(1000 + seed).integers(0, top, SIZE, np.uint8)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def two_tars(folder: Path) -> None:
    labels = [b"cat", b"dog\ncat", b"background", b"dog"]
    for shard in range(2):
        members = []
        for number in (2 * shard, 2 * shard + 1):
            members += [(f"in/{number}.png", png(picture(number))), (f"in/{number}.cls", labels[number])]
            members.append((f"in/{number}.mask.png", png(mask(number))))
        write_tar(folder / f"shard-{shard:03}.tar", members)


def write_parquet(path: Path, count: int = 4, first: int = 0, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + count)
    table = {"image": [{"bytes": png(picture(number)), "path": f"{number}.png"} for number in numbers], **columns}
    pq.write_table(pa.table(table), path, row_group_size=3)
    return path


def problems(spec: str) -> list[str]:
    source = open_source(spec)
    assert isinstance(source, FileSource)
    found = [str(problem) for problem in source.scan("all").problems]
    with pytest.raises(DataError) as error:
        source.records("all")
    assert str(error.value).startswith(found[0]) and "\n" not in str(error.value)
    return found


def test_a_tar_gives_the_images_labels_and_masks_that_were_put_in(tmp_path: Path) -> None:
    two_tars(tmp_path / "d")
    source = open_source(f"wds:{tmp_path}/d/shard-{{000..001}}.tar")
    records = source.records("all")
    assert source.classes == ("cat", "dog")
    assert [record.id for record in records] == ["in/0", "in/1", "in/2", "in/3"]
    assert [record.labels for record in records] == [(0,), (0, 1), (), (1,)]
    for number, record in enumerate(records):
        sample = source.read(record, with_mask=True)
        np.testing.assert_array_equal(sample.image, picture(number))
        np.testing.assert_array_equal(sample.mask, mask(number))


def test_records_are_a_sequence_that_slices_and_goes_to_other_processes(tmp_path: Path) -> None:
    two_tars(tmp_path / "d")
    source = open_source(f"wds:{tmp_path}/d")
    records = source.records("all")
    expected = list(records)
    assert len(records) == 4 and records[-1] == expected[3] and records[2] == expected[2]
    assert list(records[1::2]) == [expected[1], expected[3]] and list(records[1:][1:]) == expected[2:]
    with pytest.raises(IndexError):
        records[4]
    assert list(pickle.loads(pickle.dumps(records))) == expected
    with get_context("fork").Pool(2) as pool:
        images = pool.starmap(source.read, [(record,) for record in records])
    for number, sample in enumerate(images):
        np.testing.assert_array_equal(sample.image, picture(number))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("cls", b"1", ["b"]),  # a number is a place in classes.txt
        ("txt", b"a; b\n", ["a", "b"]),
        ("json", b'{"label": "b", "caption": "x"}', ["b"]),
        ("json", b'["a", 1]', ["a", "b"]),
        ("json", b'{"caption": "x"}', None),
    ],
)
def test_labels_are_read_from_cls_txt_and_json(
    tmp_path: Path, name: str, content: bytes, expected: list[str] | None
) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    write_tar(tmp_path / "x.tar", [("1.jpg", png(picture(0))), (f"1.{name}", content)])
    source = open_source(f"wds:{tmp_path}/*.tar")
    (record,) = source.records("all")
    assert record.labels == (None if expected is None else tuple("ab".index(label) for label in expected))


def test_splits_are_those_of_the_shards_names_else_by_a_hash(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "validation-0"):
        write_tar(tmp_path / "named" / f"{name}.tar", [(f"{name}.jpg", png(picture(0))), (f"{name}.cls", b"a")])
    source = open_source(f"wds:{tmp_path}/named")
    assert {split: len(source.records(split)) for split in source.splits()} == {"train": 2, "val": 1, "all": 3}
    members = [(f"{n}.{e}", d) for n in range(40) for e, d in (("jpg", png(picture(0))), ("cls", b"a"))]
    write_tar(tmp_path / "x.tar", members)
    hashed = open_source(f"wds:{tmp_path}/x.tar")
    from cpn_fast.data.sources.folder import hash_split

    assert [r.id for r in hashed.records("val")] == [str(n) for n in range(40) if hash_split(str(n)) == "val"]


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["bird", "cow"], "_type": "ClassLabel"}}
    masks = [{"bytes": png(mask(n)), "path": None} if n != 2 else None for n in range(4)]
    images = [{"bytes": png(picture(n)), "path": None} for n in range(4)]
    table = pa.table({"image": images, "label": [1, 0, None, 1], "mask": masks})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet", row_group_size=3)
    source = open_source(f"parquet:{tmp_path}")
    records = source.records("test")
    assert source.classes == ("bird", "cow") and source.splits() == ("test", "all")
    assert [record.labels for record in records] == [(1,), (0,), None, (1,)]
    for number, record in reversed(list(enumerate(records))):
        sample = source.read(record, with_mask=True)
        np.testing.assert_array_equal(sample.image, picture(number))
        assert (sample.mask is None) == (number == 2)
        if sample.mask is not None:
            np.testing.assert_array_equal(sample.mask, mask(number))


def test_parquet_of_names_and_lists_in_several_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", labels=[["x"], ["x", "y"], [], None])
    write_parquet(tmp_path / "b.parquet", 2, 4, labels=[["y"], ["x"]])
    source = open_source(f"parquet:{tmp_path}/{{a,b}}.parquet")
    records = source.records("all")
    assert [record.id for record in records] == ["0", "1", "2", "3", "4", "5"]
    assert [record.labels for record in records] == [(0,), (0, 1), (), None, (1,), (0,)]
    np.testing.assert_array_equal(source.read(records[5]).image, picture(5))


def test_bare_folders_and_files_are_recognised(tmp_path: Path) -> None:
    two_tars(tmp_path / "tars")
    write_parquet(tmp_path / "rows" / "deep" / "a.parquet", label=["x", "x", "y", "y"])
    assert open_source(tmp_path / "tars").spec == f"wds:{tmp_path}/tars"
    assert open_source(tmp_path / "rows").spec == f"parquet:{tmp_path}/rows"
    assert open_source(tmp_path / "tars" / "shard-000.tar").spec.startswith("wds:")
    write_parquet(tmp_path / "tars" / "a.parquet", label=["x", "x", "y", "y"])
    with pytest.raises(DataError, match="could be of several kinds"):
        open_source(tmp_path / "tars")


def test_shards_in_an_object_store(tmp_path: Path) -> None:
    two_tars(tmp_path / "d")
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "d").iterdir():
        system.pipe(f"/bucket/d/{path.name}", path.read_bytes())
    system.pipe("/bucket/p/a.parquet", write_parquet(tmp_path / "a.parquet", label=list("xxyy")).read_bytes())
    try:
        for spec in ("d/shard-{000..001}.tar", "d/*.tar", "d"):
            source = open_source(f"wds:memory://bucket/{spec}")
            assert [record.id for record in source.records("all")] == ["in/0", "in/1", "in/2", "in/3"]
            sample = source.read(source.records("all")[3], with_mask=True)
            np.testing.assert_array_equal(sample.image, picture(3))
            np.testing.assert_array_equal(sample.mask, mask(3))
        source = open_source("parquet:memory://bucket/p/*.parquet")
        np.testing.assert_array_equal(source.read(source.records("all")[1]).image, picture(1))
        with pytest.raises(DataError, match=r"memory://bucket/none.tar: no such shard"):
            open_source("wds:memory://bucket/none.tar")
    finally:
        system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("spec", ["file:///etc/x.tar", "simplecache::memory://b/x.tar", "ssh://host/x.tar"])
def test_other_protocols_are_not_opened(spec: str) -> None:
    with pytest.raises(DataError, match="is not opened"):
        open_source(f"wds:{spec}")


def test_the_table_is_made_once_and_again_when_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_tars(tmp_path / "d")
    spec = f"wds:{tmp_path}/d"
    first = open_source(spec).records("all")

    def never(*_: object) -> None:
        raise AssertionError("looked through again")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "members", never)
        assert list(open_source(spec).records("all")) == list(first)
    write_tar(tmp_path / "d" / "shard-001.tar", [("new.jpg", png(picture(9))), ("new.cls", b"cat")])
    os.utime(tmp_path / "d" / "shard-001.tar", ns=(1, 1))
    assert [record.id for record in open_source(spec).records("all")] == ["in/0", "in/1", "new"]
    with pytest.raises(DataError, match="has changed since"):
        open_source(spec).read(first[3])


def cut(data: bytes, count: int) -> bytes:
    return data[:count]


def _tar_of(members: list[tuple[str, bytes]]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def _link() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    return data.getvalue()


def _claims(size: int) -> bytes:
    """A header that says that its member is of some size, with nothing behind it."""
    info = tarfile.TarInfo("big.jpg")
    info.size = size
    return info.tobuf() + bytes(1024)


A = png(picture(0))
TWO = _tar_of([("a.jpg", A), ("b.jpg", A)])
FIRST = 512 + 512 * -(-len(A) // 512)  # bytes of a.jpg: its header, and its content in whole blocks
BAD_TARS: Mapping[str, tuple[bytes, str]] = {
    "in a header": (TWO[: FIRST + 100], r"after member 'a.jpg' without the end mark"),
    "in a member": (TWO[: FIRST + 600], r"member 'b.jpg': .* but the file ends at"),
    "before the end mark": (TWO[: 2 * FIRST], "without the end mark of a tar"),
    "a header that is none": (TWO[:FIRST] + b"x" * 2048, f"no header at byte {FIRST}, after member 'a.jpg'"),
    "no tar": (b"nothing of a tar" * 100, "damaged or cut off after its beginning"),
    "empty": (b"", "damaged or cut off"),
    "compressed": (b"\x1f\x8b\x08" + bytes(600), "is compressed"),
    "upwards": (_tar_of([("../a.jpg", A)]), r"member '../a.jpg' is outside the folder"),
    "absolute": (_tar_of([("/etc/a.jpg", A)]), "is outside the folder"),
    "backslash": (_tar_of([("..\\a.jpg", A)]), "backslash|outside"),
    "link": (_link(), "is a link, a device or sparse"),
    "huge": (_claims(1 << 40), "over the limit of 1,073,741,824"),
    "larger than the file": (_claims(1 << 20), "but the file ends at"),
    "one member twice": (_tar_of([("a.jpg", A), ("a.jpg", A)]), "'a.jpg' comes twice"),
    "one key twice": (_tar_of([("a.jpg", A), ("b.jpg", A), ("a.jpg", A)]), r"'a' comes twice \(in it\)"),
    "two images": (_tar_of([("a.jpg", A), ("a.png", A)]), "'a' has 2 images"),
    "no image": (_tar_of([("a.cls", b"x")]), "'a' has no image"),
    "labels in no text": (_tar_of([("a.jpg", A), ("a.txt", b"\xff\xfe\xff")]), r"member a.txt: neither text"),
    "labels in no JSON": (_tar_of([("a.jpg", A), ("a.json", b"{")]), r"member a.json: neither"),
    "labels of numbers with fractions": (_tar_of([("a.jpg", A), ("a.json", b"[0.5]")]), "label 0.5"),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_bad_tars_are_refused_in_one_line_that_names_them(tmp_path: Path, name: str) -> None:
    data, expected = BAD_TARS[name]
    (tmp_path / "bad.tar").write_bytes(data)
    found = problems(f"wds:{tmp_path}/bad.tar")
    assert found[0].startswith(f"{tmp_path}/bad.tar: ") and re.search(expected, found[0]), found[0]


def test_one_id_in_two_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [("same.jpg", A)])
    assert problems(f"wds:{tmp_path}") == [
        f"{tmp_path}/b.tar: 'same' comes twice (also in {tmp_path}/a.tar); expected each id once: remove one or rename "
        "it"
    ]


def _damaged_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_bytes(b"PAR1"), "no Parquet file, or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "no Parquet file, or damaged"),
        (lambda path: pq.write_table(pa.table({"label": ["x"]}), path), "no column of images among 'label'"),
        (lambda path: write_parquet(path, id=["../x", "a", "b", "c"]), r"row 0: id '../x' is outside the folder"),
        (lambda path: write_parquet(path, label=[0.5, 1.0, 2.0, 3.0]), "row 0, label: label 0.5; expected names"),
    ],
)
def test_bad_parquet_is_refused_in_one_line_that_names_it(
    tmp_path: Path, spoil: Callable[[Path], Any], expected: str
) -> None:
    path = write_parquet(tmp_path / "bad.parquet")
    spoil(path)
    found = problems(f"parquet:{path}")
    assert found[0].startswith(f"{path}: ") and re.search(expected, found[0]), found[0]


def test_damaged_images_in_a_parquet_name_the_row_or_the_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "bad.parquet", label=list("xxyy"))
    source = open_source(f"parquet:{path}")
    records = list(source.records("all"))
    stamp = path.stat()
    _damaged_middle(path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    failed = []
    for record in records:
        try:
            source.read(record)
        except DataError as error:
            failed.append(str(error))
    assert failed and all(str(path) in text and "\n" not in text for text in failed)


@pytest.mark.parametrize("pattern", ["x-{1..}.tar", "x-{9..1}.tar", "x-{0..99999999}.tar", "{a,{b,c}}.tar", "{a.tar"])
def test_malformed_patterns(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=r"brace|counts|lists"):
        open_source(f"wds:{tmp_path}/{pattern}")


def test_check_data_counts_and_names_broken_images(tmp_path: Path) -> None:
    members = [("a.jpg", A), ("a.cls", b"x"), ("b.jpg", b"no image"), ("b.cls", b"y"), ("c.jpg", A), ("c.cls", b"x;z")]
    write_tar(tmp_path / "s.tar", members)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    report = check_source(open_source(f"wds:{tmp_path}"), measure=False)
    assert report.splits["all"].images == 3 and report.splits["all"].sizes == ((16, 12), (16, 12))
    text = "\n".join(report.problems)
    assert f"{tmp_path}/s.tar: member b.jpg: not an image" in text and "c: unknown class 'z'" in text
    assert any("shows the same picture" in note for note in report.notes)
    assert {row[1] for row in report.preview} <= {f"{tmp_path}/s.tar: member {name}.jpg" for name in "abc"}


def test_images_without_labels_are_told_where_labels_stand_in_shards(tmp_path: Path) -> None:
    spec = f"wds:{write_tar(tmp_path / 'a.tar', [('1.png', png(picture(1)))])}"
    (problem,) = check_source(open_source(spec)).problems
    assert "none of 1 images has labels" in problem and "expected KEY.cls, KEY.json or KEY.txt beside" in problem
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [{"bytes": png(picture(1)), "path": "1.png"}]}), file)
    (problem,) = check_source(open_source(f"parquet:{file}")).problems
    assert "none of 1 images has labels" in problem and "expected a column `label` or `labels`" in problem
