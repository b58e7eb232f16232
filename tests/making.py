"""`make`, as a user's own shell would start it."""

from __future__ import annotations

import os

# What `make test` hands on: a level above 0 makes the make below print the folders that it enters.
_OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")


def user_environment() -> dict[str, str]:
    """This process's environment without what pytest and an outer make put there.

    pytest-benchmark measures nothing in what looks like an xdist worker.
    """
    kept = os.environ.items()
    return {name: value for name, value in kept if name not in _OF_MAKE and not name.startswith("PYTEST_")}
