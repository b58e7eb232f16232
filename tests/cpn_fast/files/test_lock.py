"""A folder is written by one command at a time: who holds it is said, and no lock outlives its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import LOCK_NAME, locked

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom cpn_fast.files.lock import locked\n"
    "with locked(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None):\n"
    "    print('held', flush=True); time.sleep(60)"
)


@contextmanager
def holder(folder: Path, *shard: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder), *shard]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_one_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "masks"
    with holder(folder) as other, pytest.raises(DataError) as refused, locked(folder):
        pass
    message = str(refused.value)
    assert str(folder) in message and f"process {other.pid} on {os.uname().nodename}, since 20" in message
    assert "-c" in message and "give another --output" in message and f"delete {folder / LOCK_NAME}" in message


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / LOCK_NAME).exists()
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def leave_half_written(folder: Path, process: int) -> list[Path]:
    """Files and a folder as a killed process and another one leave them, and one whose name is the user's own."""
    (folder / "SegmentationClass").mkdir(exist_ok=True)
    files = [folder / "SegmentationClass" / f".tmp-{number}-0a1b2c.png" for number in (process, process + 1)]
    own = folder / ".tmp-mine.txt"
    for path in (*files, own):
        path.touch()
    (folder / f".tmp-{process}-33cd").mkdir()
    (folder / f".tmp-{process}-33cd" / "part").touch()
    return files


@pytest.mark.parametrize("shard", [None, "1/2"])
def test_what_a_killed_holder_had_half_written_goes_with_its_lock(tmp_path: Path, shard: str | None) -> None:
    """With a part of the work, another holder may be writing: then only what the killed one wrote."""
    with holder(tmp_path, *([shard] if shard else [])) as other:
        mine, others = leave_half_written(tmp_path, other.pid)
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locked(tmp_path, shard):
            assert not mine.exists() and not (tmp_path / f".tmp-{other.pid}-33cd").exists()
            assert others.exists() == (shard is not None) and (tmp_path / ".tmp-mine.txt").exists()


def test_nothing_is_removed_where_the_last_holder_ended(tmp_path: Path) -> None:
    with locked(tmp_path):
        files = leave_half_written(tmp_path, 1)
    with locked(tmp_path):
        assert all(path.exists() for path in files)


def test_folders_that_were_made_go_where_nothing_was_written(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "new"):
        assert (tmp_path / "runs" / "new").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with locked(tmp_path / "runs" / "new" / "deep"):
        (tmp_path / "runs" / "new" / "other").touch()
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["other"]
    with locked(tmp_path / "runs" / "empty"):
        pass
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["new"]


def test_one_process_does_not_hold_a_folder_twice(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(DataError, match="is writing here"), locked(tmp_path):
        pass
    with locked(tmp_path), locked(tmp_path / "inner"):
        pass
    assert list(tmp_path.iterdir()) == []  # nothing was written to the inner folder


@pytest.mark.parametrize(
    ("held", "wanted", "free"),
    [("1/2", "2/2", True), ("1/2", "1/2", False), ("1/2", "1/3", False), ("1/2", None, False), (None, "1/2", False)],
)
def test_parts_of_one_division_are_written_side_by_side(
    tmp_path: Path, held: str | None, wanted: str | None, free: bool
) -> None:
    with locked(tmp_path, held):
        if free:
            with locked(tmp_path, wanted):
                pass
        else:
            with pytest.raises(DataError, match="is writing here"), locked(tmp_path, wanted):
                pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_when_the_other_has_ended(tmp_path: Path) -> None:
    order: list[str] = []
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        with locked(tmp_path, wait=True):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and list(tmp_path.iterdir()) == []


def test_a_child_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    with locked(tmp_path) as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(descriptor,))
        kept = (tmp_path / LOCK_NAME).rename(tmp_path / "kept")  # as if this process were killed
    kept.rename(tmp_path / LOCK_NAME)
    with pytest.raises(DataError, match="end the processes that it left behind"), locked(tmp_path):
        pass
    child.kill()
    child.wait()
    with locked(tmp_path):
        pass


def test_an_unreadable_note_is_no_reason_to_fail(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(b"\xff{")
        with pytest.raises(DataError, match="another command is writing here"), locked(tmp_path):
            pass


def test_a_file_system_without_locks_is_said_once_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "masks"):
        (tmp_path / "masks" / "a.png").write_bytes(b"")
    assert "this file system has no locks" in caplog.text
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]
