"""`review.csv`: read as people's programs save it, refused where it does not fit the folder."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.masks import write_mask
from cpn_fast.files.review_csv import (
    Decided,
    decided_names,
    mask_version,
    match_names,
    read_review,
    review_text,
)

ODD = ("a, b", 'q"uote', "sub/ünï", "new\nline", "#1", "=1+1", " blank ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "review.csv"


def test_what_is_written_is_read_by_python_and_by_us(path: Path) -> None:
    lines = [Decided(name, "rejected", f"sha256:{n}") for n, name in enumerate(ODD)]
    path.write_text(review_text(lines), encoding="utf-8")
    found = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    assert found == [
        ["name", "decision", "version"],
        *([name, "rejected", f"sha256:{n}"] for n, name in enumerate(ODD)),
    ]
    matched = match_names(path, read_review(path), ODD)
    assert {name: each.version for name, each in matched.items()} == {n: f"sha256:{i}" for i, n in enumerate(ODD)}


@pytest.mark.parametrize(
    "data",
    [
        "name,decision\ndog,accepted\nsub/cat,needs-correction\n".encode("utf-8-sig"),
        "name;decision;version\ndog;Accepted;\nsub/cat;Needs correction;\n".encode("cp1252"),
        "name\tdecision\r\ndog\taccepted\r\nsub/cat\tneeds_correction\r\n".encode("utf-16"),
        b"decision,name,mine\naccepted, dog ,x\nneeds-correction,sub/cat,y\n,undecided,z\n",
        b"name,decision\ndog.jpg,accepted\nsub/cat.png,needs-correction\ndog.jpg,accepted\n",
    ],
)
def test_forms_that_spreadsheets_and_people_write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    found = match_names(path, read_review(path), ["dog", "sub/cat", "undecided"])
    assert {name: each.decision for name, each in found.items()} == {"dog": "accepted", "sub/cat": "needs-correction"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'name'; found nothing, expected name,decision,version"),
        ("image,decision\na,accepted\n", "line 1: no column 'name'; found image,decision"),
        ("name,said\na,accepted\n", "line 1: no column 'decision'"),
        ("name,decision\na,accepted\nb,good\n", "line 3: unknown decision 'good'; expected accepted, rejected, needs-"),
        ("name,decision\na,accepted\n,rejected\n", "line 3: no name"),
        (
            "name,decision\na,accepted\n\na,rejected\n",
            "line 4: 'a' is rejected here and accepted on line 2; remove one",
        ),
        ("name,decision\na,accepted,x,y\n", "line 2: 4 cells, expected 2"),
        ('name,decision\n"a,accepted\n', "not a CSV line"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(path: Path, text: str, message: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_review(path)
    assert str(caught.value).startswith(str(path))


def test_names_of_no_mask_and_of_two(path: Path) -> None:
    path.write_text("name,decision\na,accepted\nz,rejected\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"review\.csv, line 3: 'z' has no mask in the folder; correct the name"):
        match_names(path, read_review(path), ["a", "b"])
    path.write_text("name,decision\nCafe\u0301,accepted\n", encoding="utf-8")
    assert list(match_names(path, read_review(path), ["Café"])) == ["Café"]
    with pytest.raises(DataError, match="line 2: 'b' could be any of several masks"):
        match_names(path, {"b": Decided("b", "accepted", line=2)}, ["b ", " b"])


@pytest.fixture
def folder(tmp_path: Path) -> MaskFolder:
    for number, name in enumerate("abc"):
        write_mask(tmp_path / "SegmentationClass" / f"{name}.png", np.full((3, 4), number, np.uint8))
    return MaskFolder.at(tmp_path)


def decided(folder: MaskFolder, decision: Any, **options: Any) -> set[str]:
    return decided_names(folder, folder.paths(), decision, **options)


def test_the_masks_of_which_one_thing_was_said(folder: MaskFolder, path: Path, tmp_path: Path) -> None:
    version = "sha256:" + hashlib.sha256((tmp_path / "SegmentationClass" / "a.png").read_bytes()).hexdigest()[:16]
    assert mask_version(tmp_path / "SegmentationClass" / "a.png") == version
    path.write_text(f"name,decision,version\na,accepted,{version}\nb,rejected,\nc,accepted,\n", encoding="utf-8")
    assert decided(folder, "accepted") == {"a", "c"} and decided(folder, "rejected") == {"b"}
    other = path.rename(tmp_path / "other.csv")
    assert decided(folder, "accepted", review=other) == {"a", "c"}
    with pytest.raises(
        DataError, match=r"other\.csv: no mask is needs-correction \(of 3 masks 2 accepted, 1 rejected, 0"
    ):
        decided(folder, "needs-correction", review=other)
    with pytest.raises(DataError, match=r"review\.csv: no such file; decide over the masks first with `cpn review"):
        decided(folder, "accepted")


def test_a_mask_that_has_changed_since_is_not_trained_on(folder: MaskFolder, path: Path, tmp_path: Path) -> None:
    version = mask_version(tmp_path / "SegmentationClass" / "a.png")
    path.write_text(f"name,decision,version\nb,accepted,\na,accepted,{version}\n", encoding="utf-8")
    write_mask(tmp_path / "SegmentationClass" / "a.png", np.full((3, 4), 2, np.uint8))
    with pytest.raises(
        DataError, match=r"line 3: the mask .*a\.png has changed since it was accepted; look at it again"
    ):
        decided(folder, "accepted")
