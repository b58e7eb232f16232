"""`review.csv`: what a person said of each mask of a folder; `cpn review` writes it, trainings and exports go by it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from cpn_fast.files.csv_text import csv_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.label_columns import normal
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.member import ImageFile
from cpn_fast.files.names import quoted
from cpn_fast.files.regular import read_regular
from cpn_fast.files.table import read_table

REVIEW_NAME = "review.csv"
"""In a folder of masks."""

Decision = Literal["accepted", "rejected", "needs-correction"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)

_DIGITS = 16

_HEADER = ("name", "decision", "version")
_REMEDY = "put names that hold a comma in double quotes"


@dataclass(frozen=True)
class Decided:
    """One line.

    Attributes:
        name: the mask's id, its path below `SegmentationClass` with slashes, without suffix.
        decision: what was said of it.
        version: of the mask that was looked at, see `mask_version`; "" where nobody has written it.
        line: number from 1; 0 where it was not read from a file.
    """

    name: str
    decision: Decision
    version: str = ""
    line: int = 0


def mask_version(path: ImageFile) -> str:
    """What tells two versions of a mask apart: `sha256:` and the digest's first digits; "" where it cannot be read.

    The word before them keeps spreadsheets from taking digits for a number.
    """
    try:
        return f"sha256:{hashlib.sha256(read_regular(path)).hexdigest()[:_DIGITS]}"
    except (OSError, DataError):
        return ""


def read_review(path: Path) -> dict[str, Decided]:
    """The decisions of a file by name, in its order; lines without a decision are left out.

    Args:
        path: CSV with the columns `name`, `decision` and, where known, `version`, as any spreadsheet saves it.

    Raises:
        DataError: naming file and line, if it is missing, lacks a column, a decision is none, or a name comes twice
            with two decisions.
    """
    what = f"the {REVIEW_NAME} of `cpn review`: columns {','.join(_HEADER)}"
    table = read_table(path, what, _REMEDY)
    places = {name.lower(): place for place, name in enumerate(table.header)}
    for column in _HEADER[:2]:
        if column not in places:
            found = ",".join(table.header)[:200] or "nothing"
            raise DataError(f"{path}, line 1: no column {column!r}; found {found}, expected {','.join(_HEADER)}")
    decided: dict[str, Decided] = {}
    for line, cells in table.rows:
        name, said = cells[places["name"]], cells[places["decision"]]
        if not name:
            raise DataError(f"{path}, line {line}: no name; expected that of a mask, or remove the line")
        if not said:
            continue
        if (decision := _decision(said)) is None:
            raise DataError(
                f"{path}, line {line}: unknown decision {quoted(said)}; expected {', '.join(DECISIONS)}, or nothing"
            )
        before = decided.get(name)
        if before is not None and before.decision != decision:
            raise DataError(
                f"{path}, line {line}: {quoted(name)} is {decision} here and {before.decision} on line {before.line}; "
                "remove one"
            )
        version = cells[places["version"]] if "version" in places else ""
        decided[name] = Decided(name, decision, version, line)
    return decided


def review_text(decided: Iterable[Decided]) -> str:
    """The content of the file, a line for each."""
    return csv_text(_HEADER, ((each.name, each.decision, each.version) for each in decided))


def match_names(path: Path, decided: Mapping[str, Decided], names: Iterable[str]) -> dict[str, Decided]:
    """The decisions by the names of the masks themselves.

    A spreadsheet drops blanks at a name's ends and may compose letters otherwise; a name may have the image's suffix.

    Args:
        path: the file, for errors.
        decided: what it says.
        names: of all masks.

    Raises:
        DataError: naming the line of a name that is no mask's, or two masks'.
    """
    known = set(names)
    alike: dict[str, list[str]] = {}
    for name in known:
        alike.setdefault(normal(name.strip()), []).append(name)
    found: dict[str, Decided] = {}
    for name, each in decided.items():
        candidates = [name] if name in known else alike.get(normal(name), [])
        if not candidates and "." in PurePosixPath(name).name:
            candidates = alike.get(normal(str(PurePosixPath(name).with_suffix(""))), [])
        if len(candidates) != 1:
            what = "could be any of several masks of the folder" if candidates else "has no mask in the folder"
            raise DataError(f"{path}, line {each.line}: {quoted(name)} {what}; correct the name or remove the line")
        found[candidates[0]] = each
    return found


def decided_names(
    folder: MaskFolder, paths: Mapping[str, ImageFile], decision: Decision, review: Path | None = None
) -> set[str]:
    """The masks of a folder of which a person said one thing.

    Args:
        folder: the masks.
        paths: the PNG of each by name.
        decision: what was said.
        review: the file; None = the folder's own `review.csv`.

    Returns:
        their names, at least one.

    Raises:
        DataError: as `read_review` and `match_names`, for a mask that has changed since it was looked at, or if of none
            that was said.
    """
    path = folder.root / REVIEW_NAME if review is None else review
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; decide over the masks first with `cpn review {folder.root}`, or name the file "
            "with --review"
        )
    said = match_names(path, read_review(path), paths)
    chosen = {name: each for name, each in said.items() if each.decision == decision}
    for name, each in chosen.items():
        if each.version and each.version != mask_version(paths[name]):
            raise DataError(
                f"{path}, line {each.line}: the mask {paths[name]} has changed since it was {decision}; look at it "
                "again with `cpn review`, or empty the line's version"
            )
    if not chosen:
        counts = ", ".join(f"{sum(e.decision == d for e in said.values())} {d}" for d in DECISIONS)
        raise DataError(f"{path}: no mask is {decision} (of {len(paths)} masks {counts}); decide with `cpn review`")
    return set(chosen)


def _decision(text: str) -> Decision | None:
    wanted = text.lower().replace("_", "-").replace(" ", "-")
    return next((decision for decision in DECISIONS if decision == wanted), None)
