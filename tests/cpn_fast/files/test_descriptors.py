"""The number of files that a process may open, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from cpn_fast.files.descriptors import check_descriptors, raise_limit
raise_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
for helpers in (1, 8):
    try:
        check_descriptors(helpers)
        print("enough")
    except Exception as error:
        print(type(error).__name__, error)
"""


def said(soft: int, hard: int) -> list[str]:
    code = CODE.format(soft=soft, hard=hard)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_limit_is_raised_as_far_as_the_system_lets_it_be() -> None:
    assert said(32, 2000) == ["2000 2000", "enough", "enough"]


def test_too_few_are_refused_before_helpers_start() -> None:
    limits, one, eight = said(40, 60)
    assert limits == "60 60" and one == "enough"
    assert eight.startswith("DataError this process may open 60 files (ulimit -n); expected at least 112 for 8 helper")
