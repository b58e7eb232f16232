"""A source whose images kill the process that reads them: for tests of workers that are lost over a count."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cpn_fast.data.sources.folder import FolderSource
from cpn_fast.data.types import Record, Sample


class DeadlySource(FolderSource):
    """Kills over one image: once, where `once` is a path, which is then written; else every time."""

    def __init__(self, path: Path, deadly: str, once: Path | None) -> None:
        super().__init__(path)
        self.deadly, self.once = deadly, once

    def read(self, record: Record, with_mask: bool = False) -> Sample:
        if record.id == self.deadly and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(record, with_mask)
