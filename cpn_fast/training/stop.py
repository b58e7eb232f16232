"""Ctrl-C and SIGTERM while a training runs: the step ends, the checkpoint is written; a second one stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

NOTICE = "stopping after this step; again to stop at once"
KINDS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Set by the first Ctrl-C or SIGTERM.

    Attributes:
        told: whether this process says so (of several, one does).
        signals: those that came.
    """

    told: bool = True
    signals: list[int] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take SIGINT and SIGTERM as a request; the next one finds the handlers that were there before."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {kind: signal.getsignal(kind) for kind in KINDS}

        def restore() -> None:
            for kind, handler in previous.items():
                signal.signal(kind, handler)

        def request(number: int, _frame: object) -> None:
            self.signals.append(number)
            restore()
            if previous[signal.SIGINT] == signal.SIG_IGN:  # as of a job in the background; the notice holds there too
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.told:
                _say(NOTICE)

        for kind in KINDS:
            signal.signal(kind, request)
        try:
            yield self
        finally:
            restore()

    def __bool__(self) -> bool:
        return bool(self.signals)


def _say(text: str) -> None:
    """A line on stderr, past Python's buffers: the handler may have interrupted a write to them."""
    start = "\r\x1b[2K" if sys.stderr.isatty() else ""  # in place of the progress bar, which is drawn anew below
    os.write(2, f"{start}{text}\n".encode())
