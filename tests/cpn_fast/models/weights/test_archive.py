"""Files of torch.save that claim more than they hold: refused in one line, before memory is taken."""

from __future__ import annotations

import resource
import zipfile
from pathlib import Path

import pytest
import torch

from cpn_fast.files.errors import DataError
from cpn_fast.models.weights.pretrained import read_weights
from cpn_fast.runs.checkpoint import load_checkpoint


def changed(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, zeros: int = 0) -> Path:
    """The same zip with records compressed, or with more zeros as data."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            data = old.read(record)
            new.writestr(record.filename, bytes(zeros) if "/data/" in record.filename and zeros else data)
    return target


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_what_torch_writes_is_read(weights: Path, tmp_path: Path) -> None:
    assert torch.equal(read_weights(weights)["a"], torch.arange(6.0))
    shared = torch.arange(12.0)
    torch.save({"whole": shared, "part": shared[3:7], "turned": shared.view(3, 4).t()}, tmp_path / "s.pth")
    assert torch.equal(read_weights(tmp_path / "s.pth")["part"], torch.arange(3.0, 7.0))
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pth")["a"], torch.ones(3))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(weights: Path, tmp_path: Path) -> None:
    bomb = changed(weights, tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED, zeros=200_000_000)
    assert bomb.stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_weights, load_checkpoint):
        with pytest.raises(DataError, match="or are compressed") as error:
            read(bomb)
        assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_tensor_that_repeats_its_bytes_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"a has the shape \[1099511627776\], for which the file has no bytes"):
        read_weights(tmp_path / "w.pth")


def test_a_storage_that_is_larger_than_its_record_is_refused(weights: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.pth"
    with zipfile.ZipFile(weights) as old, zipfile.ZipFile(short, "w") as new:
        for record in old.infolist():
            data = old.read(record)
            new.writestr(record.filename, data[:4] if record.filename.endswith("/data/0") else data)
    with pytest.raises(DataError):
        read_weights(short)
