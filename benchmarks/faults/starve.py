"""Disks that are full or may not be written to, no file descriptors, a clock set back, files cut short."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults import forks
from benchmarks.faults.kills import compare
from benchmarks.faults.subjects import Subject

LIMIT = 300.0
DAY = 86_400.0
FULL_AT = 24_576
"""Bytes of the small disk: enough for settings, not for results."""
ROOM = "512m"
"""Its size once it has room enough."""
FEW_DESCRIPTORS = (12, 24, 48)


def clear(ended: forks.Ended) -> bool:
    """It ended by itself, and neither a traceback nor a signal came out."""
    unclear = ("Traceback (most recent", "Exception ignored", "Fatal Python error")
    return ended.status is not None and ended.status >= 0 and not any(text in ended.said for text in unclear)


def refused(ended: forks.Ended) -> bool:
    """It ended clearly, and not as if all were well."""
    return clear(ended) and ended.status not in (0, None)


@contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """A file system of `FULL_AT` bytes at a path; False where this user may not mount one."""
    path.mkdir()
    options = f"size={FULL_AT}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    """Change the small disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def no_descriptors(count: int) -> Callable[[], None]:
    """Sets how many files a process may open."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def clock_back() -> None:
    """From now on it is yesterday."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() - DAY
    time.time_ns = lambda: real_ns() - int(DAY * 1e9)


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the beginning of a file."""
    os.truncate(path, int(path.stat().st_size * share))


def cut_last_line(path: Path) -> None:
    """Keep half of the last line, as a machine that loses power does."""
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    os.truncate(path, last + (len(content) - last) // 2)


class Starved:
    """One command in every shortage.

    Args:
        subject: the command.
        folder: for its outputs.
    """

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        first = forks.scratch(folder, "unbroken")
        self.unbroken = forks.run(subject.at(first), limit=LIMIT)
        if self.unbroken.status != 0:
            raise RuntimeError(f"{subject.name}: status {self.unbroken.status}:\n{self.unbroken.said}")
        self.wanted = subject.found(first)

    def rows(self) -> dict[str, dict[str, Any]]:
        """By shortage: `ok`, and what was said or found where it is not."""
        found = {"full disk": self._disk(), "read-only disk": self._disk("ro")}
        found |= {f"{count} descriptors": self._descriptors(count) for count in FEW_DESCRIPTORS}
        found |= {"clock set back": self._after_kill(before=clock_back)}
        if self.subject.found.__name__ == "masks_in":
            found["half a manifest line"] = self._after_kill("manifest.jsonl", cut_last_line)
        elif self.subject.found.__name__ == "training_in":
            found["half a log line"] = self._after_kill("metrics.jsonl", cut_last_line)
            found["a truncated checkpoint"] = self._after_kill("checkpoints/*", cut, may_refuse=True)
        return {name: row for name, row in found.items() if row is not None}

    def _disk(self, options: str | None = None) -> dict[str, Any] | None:
        """Full or locked first, then with room enough: the same command gives what it gives on any disk."""
        mount = self.folder / "small"
        with small_disk(mount) as mounted:
            if not mounted:
                return None
            if options is not None:
                remount(mount, f"size={ROOM},{options}")
            ended = forks.run(self.subject.at(mount / "out"), limit=LIMIT)
            remount(mount, f"size={ROOM},rw")
            again = forks.run(self.subject.at(mount / "out"), limit=LIMIT)
            row = self._judged(ended, again, mount / "out")
        mount.rmdir()
        return row

    def _descriptors(self, count: int) -> dict[str, Any]:
        output = forks.scratch(self.folder, "few")
        ended = forks.run(self.subject.at(output), limit=LIMIT, before=no_descriptors(count))
        again = forks.run(self.subject.at(output), limit=LIMIT)
        enough = ended.status == 0  # it may get by with so few
        return self._judged(ended, again, output, may_work=enough)

    def _after_kill(
        self, damaged: str | None = None, damage: Callable[[Path], None] = cut,
        before: Callable[[], None] | None = None, may_refuse: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Killed half way, a file damaged, then the same command: the unbroken result, or a clear refusal."""
        output = forks.scratch(self.folder, "damaged")
        share = 0.6
        while True:  # late enough that there is something to damage
            forks.run(self.subject.at(output), limit=LIMIT, kill_after=share * self.unbroken.seconds)
            files = sorted(output.glob(damaged)) if damaged else []
            if not damaged or any(path.stat().st_size for path in files) or share > 1.2:
                break
            share += 0.15
            shutil.rmtree(output, ignore_errors=True)
        for path in files:
            damage(path)
        again = forks.run(self.subject.at(output), limit=LIMIT, before=before)
        if may_refuse and refused(again):
            return {"ok": True, "refused": again.said.strip()[-300:]}
        return self._judged(again, again, output, may_work=True)

    def _judged(self, ended: forks.Ended, again: forks.Ended, output: Path, may_work: bool = False) -> dict[str, Any]:
        faults = []
        if not (clear(ended) if may_work else refused(ended)):
            faults.append(f"in need: status {ended.status}: {ended.said[-1500:]}")
        if again.status != 0:
            faults.append(f"afterwards: status {again.status}: {again.said[-1500:]}")
        different = {name: count for name, count in compare(self.subject.found(output), self.wanted).items() if count}
        if different:
            faults.append(f"result: {different}")
        return {"ok": not faults, **({"faults": faults} if faults else {})}
