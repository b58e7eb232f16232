"""Steps of a part, one after another under a common deadline, with a record on disk that is always up to date."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST_SECONDS = 5.0
"""A step that would have less is not begun."""

POLL_SECONDS = 1.0

OUT_OF_TIME = "not run: out of time"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the step, and of its log.
        argv: the command.
        limit: its own deadline in seconds.
        figures: JSON or JSON-lines file that the command writes as it goes, taken into the record.
        needed: where it fails, the steps behind it are not run.
    """

    name: str
    argv: Sequence[str]
    limit: float
    figures: Path | None = None
    needed: bool = False


class Record:
    """A JSON file that is rewritten with every change, whole at every moment.

    Args:
        path: the file.
        content: what it begins with.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path, self.content = path, dict(content)
        self.content["steps"] = {}
        self.write()

    def write(self) -> None:
        """Put the content on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path)

    def update(self, step: str, **values: Any) -> None:
        """Set values of a step."""
        entry = self.content["steps"].setdefault(step, {})
        if any(entry.get(name) != value for name, value in values.items()):
            entry.update(values)
            self.write()


def read_figures(path: Path | None) -> Any:
    """What a step wrote so far: a JSON value, or the list of a .jsonl file's whole lines; None where there is none."""
    if path is None or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return json.loads(text)
    except json.JSONDecodeError:  # met while it is written
        return None


def run_steps(
    steps: Sequence[Step], record: Record, budget: float, environment: Mapping[str, str], folder: Path
) -> bool:
    """Run the steps within `budget` seconds; True if all of them passed.

    Args:
        steps: in their order.
        record: gets every step's outcome, seconds and figures.
        budget: seconds for all of them.
        environment: of the commands.
        folder: where they run; logs go beside the record.
    """
    end = time.monotonic() + budget
    good, blocked = True, ""
    for step in steps:
        left = end - time.monotonic()
        if blocked or left < LEAST_SECONDS:
            outcome = f"not run: {blocked} failed" if blocked else OUT_OF_TIME
            record.update(step.name, outcome=outcome)
        else:
            outcome = _run(step, min(step.limit, left), record, environment, folder)
        print(f"{step.name}: {outcome}", flush=True)
        good &= outcome == "passed"
        if step.needed and outcome != "passed":
            blocked = step.name
    return good


def _run(step: Step, limit: float, record: Record, environment: Mapping[str, str], folder: Path) -> str:
    log = record.path.parent / f"{step.name}.log"
    started = time.monotonic()
    record.update(step.name, outcome="running", log=log.name)
    with log.open("wb") as output:
        # A session of its own: at the deadline whatever the command started ends with it.
        process = subprocess.Popen(
            step.argv,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
        try:
            outcome = _wait(process, started + limit, step, record)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    outcome = outcome or f"ended at its deadline of {limit:.0f} s"
    record.update(step.name, seconds=round(time.monotonic() - started, 1), outcome=outcome, **_found(step))
    if outcome != "passed":
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        print("\n".join(f"    {line}" for line in tail), flush=True)
    return outcome


def _wait(process: subprocess.Popen[bytes], end: float, step: Step, record: Record) -> str:
    """The outcome, or "" at the deadline; figures are taken into the record while the command runs."""
    while (left := end - time.monotonic()) > 0:
        try:
            status = process.wait(min(POLL_SECONDS, left))
        except subprocess.TimeoutExpired:
            record.update(step.name, **_found(step))
            continue
        return "passed" if status == 0 else f"failed: exit status {status}"
    return ""


def _found(step: Step) -> dict[str, Any]:
    figures = read_figures(step.figures)
    return {} if figures is None else {"figures": figures}
