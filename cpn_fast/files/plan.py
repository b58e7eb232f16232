"""`plan.json`: which images a folder is to hold results of, so that a half-done one is not taken for a whole one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cpn_fast.files.atomic import atomic_write
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What the last command meant to do.

    Attributes:
        ids: of all images, also those of other shards.
        command: resumes it; "" where no command line does.
    """

    ids: tuple[str, ...]
    command: str


def write_plan(output: Path, ids: Iterable[str], command: str) -> None:
    """Write the plan of a folder, an id a line, never all of them in memory. Raises OSError where it cannot."""
    with atomic_write(output / PLAN_NAME) as file:
        file.write(f'{{"command": {_json(command)}, "ids": ['.encode())
        for number, name in enumerate(ids):
            file.write(f"{',' if number else ''}\n{_json(name)}".encode())
        file.write(b"]}\n")


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def read_plan(output: Path) -> Plan | None:
    """The plan of a folder; None where it has none, as of versions before 0.2.

    Raises:
        DataError: for a file that cannot be read or is no plan.
    """
    path = output / PLAN_NAME
    if not path.is_file():
        return None
    remedy = "delete it; the command that makes the folder's masks writes it again"
    found = read_json(path, "the plan of the masks", remedy)
    ids, command = (found.get("ids"), found.get("command")) if isinstance(found, dict) else (None, None)
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids) or not isinstance(command, str):
        raise DataError(f"{path}: expected an object with `command` and a list `ids` of names; {remedy}")
    return Plan(tuple(ids), command)
