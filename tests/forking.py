"""A process that has imported what commands need and forks one for each: tests signal them without touching pytest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

LIMIT = 60
"""Seconds that a start or an end may take on a busy machine; on an idle one it takes less than one."""


@dataclass
class Server:
    """Starts commands in processes that no test has touched."""

    process: subprocess.Popen[str]
    running: int = 0

    def start(self, *request: object) -> int:
        """Send one line to the process; the pid of what it forks, which leads a group of its own."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        return self.running

    def status(self) -> int:
        """Exit status of the process started last, once it has ended."""
        assert self.process.stdout
        status = int(self.process.stdout.readline())
        self.running = 0
        return status

    def end(self) -> None:
        """Kill what a failed test has left running."""
        if self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.running, signal.SIGKILL)
            self.status()


@contextmanager
def serving(code: str) -> Iterator[Server]:
    """A server that runs `code`: a line of JSON on stdin, then a pid and an exit status on stdout."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield Server(process)
    assert process.stdin
    process.stdin.close()
    process.wait(LIMIT)
