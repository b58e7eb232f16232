from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cpn_fast.files import hash_index
from cpn_fast.files.atomic import atomic_path, atomic_write, atomic_write_bytes, atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.mask_folder import MaskFolder


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"
    atomic_write_bytes(path, b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    atomic_write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("named"), replace(*paths)))
    atomic_write_bytes(tmp_path / "a.bin", b"new")
    assert order == [(tmp_path / "a.bin").stat().st_ino, "named", tmp_path.stat().st_ino]


def test_a_killed_writer_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")
    code = (
        "import sys, time; from cpn_fast.files.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as f: f.write(b'half'); f.flush(); print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"in\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"


def test_atomic_path_keeps_the_suffix_and_long_names_fit(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".npz")  # 254 bytes, one below the limit of common file systems
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".npz" and temporary.parent == path.parent
        temporary.write_bytes(b"x")
    assert path.read_bytes() == b"x"


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_manifest_keeps_the_last_status(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "new" / "manifest.jsonl")
    assert manifest.done() == set() and not manifest.path.exists()
    with manifest:
        manifest.append({"id": "ü b", "status": "ok", "score": 0.5})
        manifest.append({"id": "c", "status": "error", "message": "two\nlines"})
        manifest.append({"id": "d", "status": "ok"})
        manifest.append({"id": "d", "status": "error"})
    assert len(manifest.path.read_text(encoding="utf-8").splitlines()) == 4
    assert Manifest(manifest.path).done() == {"ü b"}
    assert Manifest(manifest.path).entries()["c"]["message"] == "two\nlines"


def test_manifest_survives_a_torn_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'{"id": "a", "status": "ok"}\n{"id": "b", "sta')
    assert Manifest(path).done() == {"a"}
    assert "manifest.jsonl, line 2" in caplog.text
    with Manifest(path) as manifest:
        manifest.append({"id": "c", "status": "ok"})
    assert Manifest(path).done() == {"a", "c"}
    path.write_bytes(path.read_bytes()[:-5] + "ü".encode()[:1])  # torn within a character
    assert Manifest(path).done() == {"a"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[1]", "no object but list"),
        ('{"status": "ok"}', "its id is no text but NoneType"),
        ('{"id": 3, "status": "ok"}', "its id is no text but int"),
        ('{"id": "../b", "status": "ok"}', "its id is outside the folder"),
        ('{"id": "b"}', "no status"),
        ('{"id": "b", "status": null}', "status is None"),
        ('{"id": "b", "status": "ok", "image": 7}', "image is 7"),
        ('{"id": "b", "status": "ok", "width": "7"}', "width is '7'"),
        ('{"id": "b", "status": "ok", "height": true}', "height is True"),
        ('{"id": "b", "status": "ok", "labels": "cat"}', "labels is 'cat'"),
        ('{"id": "b", "status": "ok", "labels": [1]}', "labels holds other things than names"),
        ('{"id": "b", "status": "ok", "confidence": "high"}', "confidence is 'high'"),
        ("[" * 100_000, "no JSON"),
        ('{"id": "b", "status": "ok", "width": ' + "9" * 5000 + "}", "no JSON"),
    ],
)
def test_a_line_with_missing_or_wrong_values_is_skipped_with_its_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, fault: str
) -> None:
    good = '{"id": "a", "status": "ok", "labels": null, "confidence": 1, "anything": [{}]}'
    (tmp_path / "m.jsonl").write_text(f"{line}\n{good}\n")
    assert list(Manifest(tmp_path / "m.jsonl").entries()) == ["a"]
    assert f"m.jsonl, line 1: not a manifest entry ({fault}), skipped" in caplog.text


def test_manifest_requires_id_and_status(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a string status"):
        Manifest(tmp_path / "m").append({"id": "a"})
    with pytest.raises(DataError, match="needs a string id and status"):
        Manifest(tmp_path / "m").append({"id": 3})


def append_many(path: Path, name: str) -> None:
    with Manifest(path) as manifest, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: manifest.append({"id": f"{name}{n}", "status": "ok", "pad": "x" * 500}), range(50)))


def test_threads_and_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=append_many, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    lines = path.read_text().splitlines()
    assert len(lines) == 150 and len({json.loads(line)["id"] for line in lines}) == 150


def test_appends_are_on_disk_before_the_process_dies(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    code = (
        "import os, signal, sys; from cpn_fast.files.manifest import Manifest\n"
        "Manifest(sys.argv[1]).append({'id': 'a', 'status': 'ok'}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=30)
    assert Manifest(path).done() == {"a"}, f"after {time.monotonic() - start:.1f} s"


def test_a_file_that_a_library_made_private_gets_the_modes_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_path(tmp_path / "weights.bin") as temporary:
        temporary.write_bytes(b"x")
        temporary.chmod(0o600)
    assert (tmp_path / "weights.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_index_finds_the_last_entry_of_every_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.jsonl"
    with Manifest(path) as manifest:
        for number in range(300):
            manifest.append({"id": f"ü{number % 100}", "status": "ok", "foreground": number})
    with path.open("ab") as file:
        file.write(b'\n{"id": "\xc3\xbc5", "status": 3}\n{"id": "torn')
    entries, index = Manifest(path).entries(), Manifest(path).index()
    assert {name: index.find(name) for name in entries} == entries and len(entries) == 100
    assert entries["ü7"]["foreground"] == 207 and index.find("ü5") == entries["ü5"] and index.find("x") is None
    index.close()
    assert Manifest(tmp_path / "none").index().find("x") is None
    streamed = list(Manifest(path).stream())
    assert {entry["id"]: entry for entry in streamed} == entries and len(streamed) == 100
    assert [entry["foreground"] for entry in streamed] == list(range(200, 300))  # as the lines are
    even = Manifest(path).last_lines(lambda entry: entry["foreground"] % 2 == 0)
    assert list(even) == streamed[::2] and len(even) == 50
    assert even[7] == streamed[14] and even[-1] == streamed[98] and list(even[3:6]) == streamed[6:12:2]
    with Manifest(path) as manifest:  # what comes later changes nothing of what was read
        manifest.append({"id": "ü0", "status": "ok", "foreground": 300})
    assert list(even) == streamed[::2] and not Manifest(tmp_path / "none").last_lines(bool)


def test_two_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_index, "_hash", lambda name: 7)
    path = tmp_path / "m.jsonl"
    with Manifest(path) as manifest:
        for number, name in enumerate("abcab"):
            manifest.append({"id": name, "status": "ok", "foreground": number})
    index = Manifest(path).index()
    found = {name: (index.find(name) or {}).get("foreground") for name in "abcd"}
    assert found == {"a": 3, "b": 4, "c": 2, "d": None}
    assert [entry["foreground"] for entry in Manifest(path).stream()] == [2, 3, 4]


def test_a_mask_costs_one_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", waits.append)
    folder = MaskFolder.at(tmp_path)
    with folder.manifest() as manifest:
        for number in range(20):
            folder.write(str(number), np.zeros((2, 2), np.uint8))
            manifest.append({"id": str(number), "status": "ok"})
        assert 20 <= len(waits) <= 25  # the manifest's once a second


def test_lines_are_read_where_they_were_written_also_beside_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "torn", "sta')
    with Manifest(path) as one, Manifest(path) as other:
        places = []
        for number in range(4):
            places.append(one.append({"id": f"ü{number}", "status": "ok", "n": number}))
            other.append({"id": "x" * (number + 1), "status": "ok"})
        assert [entry["n"] for entry in one.lines_at(places)] == [0, 1, 2, 3]
        assert [entry["n"] for entry in one.lines_at(places[::-2])] == [3, 1]
    path.write_text("")
    with pytest.raises(DataError, match=r"m\.jsonl: changed in the meantime"):
        list(Manifest(path).lines_at(places))
