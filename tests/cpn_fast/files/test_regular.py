"""FIFOs, devices and impossible names are errors, never a wait; in a thread of its own, so that a hang would show."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpn_fast.data.sources.open import open_source
from cpn_fast.files.digest import weights_sha256
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import image_size, read_image
from cpn_fast.files.json_file import read_json
from cpn_fast.files.labels_csv import read_label_table
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import read_classes, read_mask
from cpn_fast.files.regular import is_regular, open_regular, read_regular
from cpn_fast.files.soft_maps import read_soft_maps

READERS: dict[str, Callable[[Path], Any]] = {
    "open_regular": open_regular,
    "image": read_image,
    "size": image_size,
    "mask": read_mask,
    "csv": read_label_table,
    "classes": read_classes,
    "json": lambda path: read_json(path, "JSON"),
    "manifest": lambda path: Manifest(path).entries(),
    "soft maps": read_soft_maps,
    "digest": weights_sha256,
}


def error_of(reader: Callable[[Path], Any], path: Path) -> str:
    """The DataError of a reader, or a failed test after two seconds."""
    found: list[BaseException | None] = []

    def call() -> None:
        try:
            reader(path)
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(2)
    assert found, f"waits for {path}"
    assert isinstance(found[0], DataError), found
    return str(found[0])


@pytest.mark.parametrize("name", READERS)
def test_special_files_are_refused_at_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "fifo: a FIFO (named pipe); expected a regular file" in error_of(READERS[name], tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "zero: a character device; expected a regular file" in error_of(READERS[name], tmp_path / "zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        listener.bind("socket")
    assert "socket: a socket; expected a regular file" in error_of(READERS[name], tmp_path / "socket")


@pytest.mark.parametrize("name", [name for name in READERS if name != "open_regular"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    for impossible in ("a\0b", "x" * 5000):
        assert len(error_of(READERS[name], tmp_path / impossible)) < 6000


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "a") == read_regular(tmp_path / "link") == b"abc"
    assert is_regular(tmp_path / "link")
    assert not any(is_regular(tmp_path / name) for name in ("", "missing", "a\0b", "x" * 5000))
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_a_fifo_among_the_images_is_a_problem_of_that_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    source = open_source(f"folder:{tmp_path}")
    (record,) = source.records("all")
    assert "x.jpg: a FIFO" in error_of(lambda _: source.read(record), tmp_path)
    (tmp_path / "labels.csv").symlink_to("/dev/zero")
    assert "labels.csv: a character device" in error_of(lambda path: open_source(f"folder:{path}"), tmp_path)
