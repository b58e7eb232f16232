"""A pytest plugin that writes one line of JSON per test as soon as the test is done."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "CPN_TEST_OUTCOMES"
"""Environment variable: the file to which lines are appended."""


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test's outcome is that of its call, or of the set-up or tear-down that failed or was skipped."""
    if report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        line["reason"] = (crash.message if crash is not None else str(report.longrepr)).strip()[:500]
    elif report.outcome == "skipped":
        line["reason"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@pytest.hookimpl
def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported is a failure, too."""
    if report.failed:
        line = {"test": report.nodeid, "outcome": "failed", "reason": str(report.longrepr).strip()[-500:]}
        with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
