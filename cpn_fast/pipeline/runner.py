"""Run one command of the pipeline in a process of its own: its time, its peak memory, and signals passed on once."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cpn_fast.config.serialise import config_to_dict

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: exit status; negative = ended by that signal.
        seconds: wall time.
        peak_memory_mib: largest resident memory of the process and its children, in MiB.
    """

    status: int
    seconds: float
    peak_memory_mib: float


class Runner(Protocol):
    """Runs a command with a config."""

    def __call__(self, command: str, config: Any, keep_open: int) -> Outcome:
        """Run to the end.

        Args:
            command: behind `cpn`, e.g. "segment train".
            config: what it runs with.
            keep_open: a file descriptor (a lock) that the command's process keeps open too.
        """


def run_process(command: str, config: Any, keep_open: int) -> Outcome:
    """Run a command in a process group of its own: Ctrl-C reaches it once, through here, so that it can finish a
    checkpoint; if this process is killed, it is asked to end as well (on Linux). Its config is read from a file that is
    there as long as it runs, since a training on several devices starts further processes with the same arguments."""
    with tempfile.TemporaryDirectory(prefix="cpn-") as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config_to_dict(config)), encoding="utf-8")
        return _run([sys.executable, "-m", "cpn_fast.cli.configured", command, str(path)], keep_open)


def _run(argv: list[str], keep_open: int) -> Outcome:
    started = time.perf_counter()
    process = subprocess.Popen(
        argv,
        pass_fds=(keep_open,),
        start_new_session=True,
        preexec_fn=end_with_parent(os.getpid()) if sys.platform == "linux" else None,
    )
    with _passing_on(process):
        _, wait_status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Outcome(process.returncode, time.perf_counter() - started, peak)


def end_with_parent(parent: int) -> Callable[[], None]:
    """What lets a process get SIGTERM when `parent` ends, called in it at its start; on Linux."""
    library = ctypes.CDLL(None)  # loaded before the fork

    def set_signal() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended in between
            os.kill(os.getpid(), signal.SIGTERM)

    return set_signal


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    kinds = (signal.SIGINT, signal.SIGTERM)

    def pass_on(number: int, _frame: object) -> None:
        process.send_signal(number)

    previous = {kind: signal.signal(kind, pass_on) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
