"""What a process of the cluster does: images in, entries and bytes of files out; it writes nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import LOCAL, Crew, Entry
from cpn_fast.files.sent_work import SentWork

Made = tuple[Entry, Any]
"""The entry of an image, and what is to be stored of it; None for nothing."""


@dataclass(frozen=True)
class Sent:
    """What every worker gets once.

    Attributes:
        jobs: what to do.
        folder: the current folder of the command, from which relative paths count.
        version: of cpn-fast there.
    """

    jobs: SentWork[Any, Any]
    folder: str
    version: str


def own_version() -> str:
    """Of cpn-fast, as it is installed here."""
    return version("cpn-fast")


class Worker:
    """Holds the network and does one list of images after the other."""

    _crew: Crew
    _jobs: SentWork[Any, Any]

    def __init__(self) -> None:
        self._open = ExitStack()  # until the process ends

    def begin(self, sent: Sent) -> str:
        """Make ready and give the name of this machine.

        Raises:
            DataError: where this machine has another version of cpn-fast, or lacks the device.
        """
        host = socket.gethostname()
        if sent.version != own_version():
            raise DataError(
                f"{host}: cpn-fast {own_version()} is installed there, {sent.version} where the command was "
                "given; install the same on every machine of the cluster"
            )
        with suppress(OSError):  # a machine without the folder reads what has a whole path
            os.chdir(sent.folder)
        self._jobs = sent.jobs.on_worker().held()
        self._crew = self._open.enter_context(LOCAL.crew(self._jobs))
        return host

    def work(self, items: Sequence[Any]) -> tuple[list[Made], float]:
        """Do images; gives what was made of each, and the seconds. Raises DataError as `ImageWork.work` does."""
        started = time.monotonic()
        made = [(entry, self._jobs.take(entry)) for entry in self._crew.entries(items)]
        return made, time.monotonic() - started
