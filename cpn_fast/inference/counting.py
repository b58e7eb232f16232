"""What is counted of every image for a score, in this process or on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from cpn_fast.data.types import Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Engine, Entry
from cpn_fast.files.progress import Progress
from cpn_fast.files.sent_work import SentWork


def counted(
    work: SentWork[Record, Any], records: Sequence[Record], engine: Engine, progress: Progress
) -> Generator[Entry, None, None]:
    """Count every image; to be closed by who does not take all entries.

    Args:
        work: what is counted of each.
        records: the images.
        engine: where they are counted.
        progress: where the bar is shown.

    Yields:
        the entry of each image, in any order.

    Raises:
        DataError: for the first image of which nothing can be counted.
    """
    with progress.items(work.verb, len(records)) as advance, engine.crew(work) as crew:
        for entry in crew.entries(records):
            if entry["status"] != "ok":
                raise DataError(f"{entry['error']}; a score needs every image of the split")
            advance(1, crew.state())
            yield entry
