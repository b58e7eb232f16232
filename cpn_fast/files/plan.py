"""`plan.json`: which images a folder is to hold results of, so that a half-done one is not taken for a whole one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpn_fast.files.atomic import atomic_write
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.packed import PackedTexts
from cpn_fast.files.regular import open_regular

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What the last command meant to do.

    Attributes:
        ids: of all images, also those of other shards; packed.
        command: resumes it; "" where no command line does.
    """

    ids: Sequence[str]
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
    if by_lines := _read_lines(path):
        return by_lines
    remedy = "delete it; the command that makes the folder's masks writes it again"
    found = read_json(path, "the plan of the masks", remedy)
    ids, command = (found.get("ids"), found.get("command")) if isinstance(found, dict) else (None, None)
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids) or not isinstance(command, str):
        raise DataError(f"{path}: expected an object with `command` and a list `ids` of names; {remedy}")
    return Plan(PackedTexts(ids), command)


def _read_lines(path: Path) -> Plan | None:
    """A plan as `write_plan` lays it out, read line by line; None for any other, which is read as a whole."""
    try:
        with open_regular(path) as file:
            begin = json.loads(next(file, b"") + b"]}")
            ids = PackedTexts(_named(file))
    except (OSError, ValueError, RecursionError):
        return None
    command = begin.get("command") if isinstance(begin, dict) else None
    return Plan(ids, command) if isinstance(command, str) and begin == {"command": command, "ids": []} else None


def _named(lines: Iterable[bytes]) -> Iterator[str]:
    """The ids of lines `"ID",`, of which the last is `"ID"]}`. Raises ValueError for others."""
    ended = False
    for line in lines:
        name = json.loads(line.removesuffix(b",\n").removesuffix(b"]}\n"))
        if ended or not isinstance(name, str) or not line.endswith((b",\n", b"]}\n")):
            raise ValueError("no line of an id")
        ended = line.endswith(b"]}\n")
        yield name
    if not ended:
        raise ValueError("it does not end")
