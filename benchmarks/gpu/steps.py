"""Steps of a part, one after another under a common deadline, with a record on disk that is always up to date."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        background: begun in its turn, while the steps behind it run; ends before those that need it.
        needs: a background step without which this one is not run.
        environment: variables that this command alone is given.
        lacks: why it cannot be run on this machine; "" = it can.
    """

    name: str
    argv: Sequence[str]
    limit: float
    figures: Path | None = None
    needed: bool = False
    background: bool = False
    needs: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    lacks: str = ""


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
    blocked = ""
    behind: dict[str, Running] = {}
    outcomes: dict[str, str] = {}

    def settle(name: str) -> None:
        """Wait for a step in the background, and say how it ended."""
        if name in behind:
            outcomes[name] = behind.pop(name).outcome(end)
            print(f"{name}: {outcomes[name]}", flush=True)

    try:
        for step in steps:
            settle(step.needs)
            left = end - time.monotonic()
            failed = blocked or (step.needs if outcomes.get(step.needs, "passed") != "passed" else "")
            if failed or step.lacks or left < LEAST_SECONDS:
                outcome = f"not run: {failed} failed" if failed else step.lacks or OUT_OF_TIME
                record.update(step.name, outcome=outcome)
            else:
                running = Running(step, min(step.limit, left), record, environment, folder)
                if step.background:
                    behind[step.name] = running
                    continue
                outcome = running.outcome(end)
            print(f"{step.name}: {outcome}", flush=True)
            outcomes[step.name] = outcome
            if step.needed and outcome != "passed":
                blocked = step.name
        for name in list(behind):
            settle(name)
    finally:
        for running in behind.values():
            running.kill()
    return all(outcome == "passed" for outcome in outcomes.values())


class Running:
    """A command that was begun, in a session of its own: at the deadline whatever it started ends with it.

    Args:
        step: what is run.
        limit: seconds that it may take.
        record: gets its outcome, seconds and figures; its log goes beside it.
        environment: of the command, its own variables on top.
        folder: where it runs.
    """

    def __init__(self, step: Step, limit: float, record: Record, environment: Mapping[str, str], folder: Path) -> None:
        self.step, self.limit, self.record = step, limit, record
        self._log = record.path.parent / f"{step.name}.log"
        self._started = time.monotonic()
        record.update(step.name, outcome="running", log=self._log.name)
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                step.argv,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, **step.environment},
                cwd=folder,
                start_new_session=True,
            )
        self._ended = float("inf")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Note when it ends: one in the background is asked for long after."""
        self._process.wait()
        self._ended = time.monotonic()

    def outcome(self, end: float) -> str:
        """How it ended, at the latest at its deadline or at `end`, when all steps end."""
        try:
            outcome = _wait(self._process, min(self._started + self.limit, end), self.step, self.record)
        finally:
            self.kill()
        outcome = outcome or f"ended at its deadline of {self.limit:.0f} s"
        seconds = round(min(self._ended, time.monotonic()) - self._started, 1)
        self.record.update(self.step.name, seconds=seconds, outcome=outcome, **_found(self.step))
        if outcome != "passed":
            tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            print("\n".join(f"    {line}" for line in tail), flush=True)
        return outcome

    def kill(self) -> None:
        """End it, with all that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _wait(process: subprocess.Popen[bytes], end: float, step: Step, record: Record) -> str:
    """The outcome, or "" at the deadline; figures are taken into the record while the command runs."""
    while (left := end - time.monotonic()) > 0:
        try:
            status = process.wait(min(POLL_SECONDS, left))
        except subprocess.TimeoutExpired:
            record.update(step.name, **_found(step))
            continue
        return _ended(status)
    status = process.poll()  # one in the background may have ended long ago
    return "" if status is None else _ended(status)


def _ended(status: int) -> str:
    return "passed" if status == 0 else f"failed: exit status {status}"


def _found(step: Step) -> dict[str, Any]:
    figures = read_figures(step.figures)
    return {} if figures is None else {"figures": figures}
