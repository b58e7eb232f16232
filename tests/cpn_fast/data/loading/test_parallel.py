"""Helper processes and signals: a scheduler sends SIGTERM to the whole group of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMAND = """
import os, signal, sys, time
from pathlib import Path

import torch

from cpn_fast.data.loading.parallel import parallel_map

helpers, go = Path(sys.argv[2]), Path(sys.argv[3])


def work(number):
    helpers.joinpath(f"{os.getpid()}").touch()
    while not go.exists():
        time.sleep(0.02)
    return number * number


def stop(*_):
    if sys.argv[1] == "goes on":
        print("told", flush=True)
    else:
        raise KeyboardInterrupt


signal.signal(signal.SIGTERM, stop)
results = parallel_map(work, range(6), processes=2, chunk=1)
print("start", flush=True)
try:
    print(list(results), flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
Start = Callable[[str], tuple[subprocess.Popen[str], list[int]]]


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """Once it exists, the helpers end their work."""
    return tmp_path / "go"


@pytest.fixture
def start(tmp_path: Path, go: Path) -> Iterator[Start]:
    """Starts the command in a group of its own, waits for its two helpers; gives it and their process ids."""
    running: list[subprocess.Popen[str]] = []
    folder = tmp_path / "helpers"
    folder.mkdir()

    def starter(mode: str) -> tuple[subprocess.Popen[str], list[int]]:
        command = [sys.executable, "-c", COMMAND, mode, folder, go]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        running.append(process)
        waited = 0
        while len(list(folder.iterdir())) < 2:
            assert process.poll() is None and waited < 1200, process.communicate()
            time.sleep(0.05)
            waited += 1
        return process, [int(path.name) for path in folder.iterdir()]

    yield starter
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_helpers_outlive_a_sigterm_to_their_group(start: Start, go: Path) -> None:
    process, _ = start("goes on")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["start\n", "told\n"]
    go.touch()
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "[0, 1, 4, 9, 16, 25]\n"), errors


def test_a_stopped_command_ends_its_helpers_without_a_traceback(start: Start, go: Path) -> None:
    process, helpers = start("stops")
    os.killpg(process.pid, signal.SIGTERM)
    go.touch()
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "start\nstopped\n", "")
    for helper in helpers:
        with pytest.raises(ProcessLookupError):
            os.kill(helper, 0)


def test_helpers_end_with_a_killed_parent(start: Start) -> None:
    """They keep its standard output open: it ends when the last of them has."""
    process, _ = start("goes on")
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
