"""Kill, starve and feed every command, and write what came of it.

python -m benchmarks.faults --output benchmarks/results/faults.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults import damaged, forks, kills, starve, subjects
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.reproduce.machine import machine

PARTS = ("kills", "shortages", "damaged")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where nothing was lost, doubled or unclear, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file of the record; it is written as results come")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", nargs="+", help="names of commands, or of kinds of files")
    parser.add_argument("--kills", type=int, default=56, help="moments at which commands are killed, over all commands")
    parser.add_argument("--damaged", type=int, default=540, help="damaged files, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cpn-faults-") as folder:
        os.environ["CPN_CACHE"] = str(Path(folder) / "cache")
        forks.warm()
        record = _Record(given.output)
        _run(given, Path(folder), record)
    print(f"{record.faults} faults")
    return 0 if record.faults == 0 else 1


class _Record:
    """Results as they come, in the terminal and in a file.

    Args:
        path: the file; None = the terminal alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": machine("cpu")}
        self.faults = 0

    def add(self, part: str, name: str, row: dict[str, Any], faults: int) -> None:
        self.content.setdefault(part, {})[name] = row
        self.faults += faults
        self.content["faults"] = self.faults
        print(f"{part}: {name}: {json.dumps(row)}", flush=True)
        if self.path is not None:
            atomic_write_text(self.path, json.dumps(self.content, indent=1) + "\n")


def _run(given: argparse.Namespace, folder: Path, record: _Record) -> None:
    (folder / "made").mkdir()
    (folder / "cases").mkdir()
    kinds = damaged.plain_cases(folder / "cases")
    commands: dict[str, subjects.Subject] = {}
    if given.only is None or not set(given.only) <= kinds.keys():
        commands = subjects.subjects(folder / "made", subjects.write_data(folder / "made"))
        kinds |= damaged.run_cases(folder / "made", folder / "cases")
    unknown = set(given.only or ()) - commands.keys() - kinds.keys()
    if unknown:
        raise SystemExit(f"--only {' '.join(sorted(unknown))}: expected some of {', '.join((*commands, *kinds))}")
    chosen = [commands[name] for name in commands if given.only is None or name in given.only]
    if "kills" in given.parts:
        for number, subject in enumerate(chosen):
            times = given.kills // len(chosen) + (number < given.kills % len(chosen))
            row = kills.kill(subject, times, folder, given.seed)
            bad = sum(row[key] for key in ("lost", "different", "doubled", "left")) + len(row["unclear"])
            record.add("kills", subject.name, row, bad)
    if "shortages" in given.parts:
        for subject in chosen:
            if subject.name not in ("run", "label on Ray"):  # the other commands, one after the other and elsewhere
                rows = starve.Starved(subject, folder).rows()
                record.add("shortages", subject.name, rows, sum(not row["ok"] for row in rows.values()))
    if "damaged" in given.parts:
        wanted = {name: case for name, case in kinds.items() if given.only is None or name in given.only}
        for name, case in wanted.items():
            row = damaged.feed(case, -(-given.damaged // max(1, len(wanted))), folder, given.seed)
            record.add("damaged", name, row, len(row["faults"]))


if __name__ == "__main__":
    sys.exit(main())
