"""Lightning's Fabric: device, precision and several processes.

Of torchmetrics its import asks the version alone, but imports all of it to be told, and scipy with it: 1.6 seconds of a
processor whenever a training begins. So it is told the version and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

_ASKED = "torchmetrics"


@contextmanager
def _version_alone() -> Iterator[None]:
    """Inside, a first import of torchmetrics finds a module that has nothing but its version."""
    try:
        found = version(_ASKED)
    except PackageNotFoundError:
        found = None
    if found is None or _ASKED in sys.modules:
        yield
        return
    stand_in = ModuleType(_ASKED)
    stand_in.__version__ = found  # type: ignore[attr-defined]
    sys.modules[_ASKED] = stand_in
    try:
        yield
    finally:
        del sys.modules[_ASKED]


with _version_alone():
    from lightning_fabric import Fabric as Fabric
    from lightning_fabric.strategies import DDPStrategy as DDPStrategy
