"""A Ray cluster of this machine, one for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.ray_fake import cluster_here


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with cluster_here() as held:
        yield held
