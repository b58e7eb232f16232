"""A command in a process of its own, forked from one that has imported what it needs; it may be killed or starved."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

IMPORTS = ("cpn_fast.cam.label", "cpn_fast.cam.task", "cpn_fast.cli.main", "cpn_fast.data.check.command",
           "cpn_fast.pipeline.command", "cpn_fast.refine.command", "cpn_fast.scoring.command",
           "cpn_fast.segment.predict", "cpn_fast.segment.task", "cpn_fast.weights.command",
           "cpn_export.label")  # fmt: skip

POLL = 0.002
"""Seconds between two looks at a process."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; below 0 the signal that ended it; None = it was still running at its limit.
        seconds: that it ran.
        said: all that it wrote to its standard output and error.
        peak_mib: the most memory that it held, in MiB.
        killed: it was still running when it was to be killed.
    """

    status: int | None
    seconds: float
    said: str
    peak_mib: float
    killed: bool = False


def warm() -> None:
    """Import what the commands need, so that a fork is there in milliseconds."""
    for name in IMPORTS:
        importlib.import_module(name)


def run(
    words: Sequence[str],
    *,
    limit: float = 120,
    kill_after: float | None = None,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Run `cpn ...` or `cpn-label ...`.

    Args:
        words: the program's name and its words.
        limit: seconds after which it counts as hung.
        kill_after: seconds after which it and all that it started are killed with SIGKILL.
        before: called in the new process first.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _become(words, said.fileno(), before)
        status, usage, killed = _wait(child, started, limit, kill_after)
        seconds = time.perf_counter() - started
        said.seek(0)
        text = said.read().decode(errors="replace")
    return Ended(status, seconds, text, usage / 1024, killed)


def _become(words: Sequence[str], said: int, before: Callable[[], None] | None) -> None:
    """The command, in the forked process; does not return."""
    status = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if before is not None:
            before()
        program, *rest = words
        module = {"cpn": "cpn_fast.cli.main", "cpn-label": "cpn_export.label"}[program]
        status = importlib.import_module(module).main([str(word) for word in rest]) or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # the point of the exercise: whatever comes out is shown as a traceback
        sys.excepthook(*sys.exc_info())
        status = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, started: float, limit: float, kill_after: float | None) -> tuple[int | None, int, bool]:
    killed = False
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            _end_group(child)
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss, killed
        passed = time.perf_counter() - started
        if kill_after is not None and passed >= kill_after and not killed:
            killed = True
            for process in [*_family(child), child]:
                _kill(process)
        if passed >= limit:
            for process in [*_family(child), child]:
                _kill(process)
            _, _, usage = os.wait4(child, 0)
            return None, usage.ru_maxrss, killed
        time.sleep(POLL)


def _family(leader: int) -> list[int]:
    """All processes below one, those in sessions of their own too: a machine that is lost takes them along."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [leader]
    for process in found:
        found += children.get(process, [])
    return found[1:]


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end_group(leader: int) -> None:
    """Nothing that it started may go on writing."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def scratch(folder: Path, name: str) -> Path:
    """A path in `folder` where nothing is."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder)) / "out"
