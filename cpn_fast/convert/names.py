"""Names that a format can hold, and the list of those that had to be changed."""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpn_fast.files.csv_text import csv_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.text import read_text

NAMES_FILE = "names.csv"
"""In an output folder; beside an output file it is `FILE.names.csv`."""

_HEADER = ("kind", "name", "written")
_FORBIDDEN = frozenset('<>:"|?*\\')
_LONGEST = 200

Rule = Callable[[str], str]
"""A name as a format can hold it; equal to the name where it can be kept."""


@dataclass(frozen=True)
class NameRules:
    """What names a format can hold.

    Attributes:
        image: rule for images' names, with slashes.
        label: rule for classes.
        apart: images' names must differ also where folders are flattened or upper and lower case are the same.
    """

    image: Rule
    label: Rule
    apart: bool


@dataclass(frozen=True)
class Renamed:
    """A name that is another in the output.

    Attributes:
        kind: "image" or "class".
        name: as it is in the folder of masks.
        written: as it is in the output.
    """

    kind: str
    name: str
    written: str


def as_text(name: str) -> str:
    """A name that UTF-8 can hold: bytes of a file name that are no text become `_`."""
    return name.encode("utf-8", "replace").decode("utf-8").replace("?", "_") if _is_broken(name) else name


def as_path(name: str) -> str:
    """A name that can be a file on every system and a line of a list: part by part of its path."""
    return "/".join(_as_part(part) for part in as_text(name).split("/"))


def as_label(name: str) -> str:
    """A class that a line of CVAT's labelmap can hold."""
    safe = "".join("_" if letter == ":" or _is_control(letter) else letter for letter in as_text(name)).strip()
    return f"_{safe[1:]}" if safe.startswith("#") else safe or "_"


ANY_TEXT = NameRules(as_text, as_text, False)
"""Of formats that name images in a JSON."""
FILES = NameRules(as_path, as_text, True)
"""Of formats with a file for each image."""
LABELMAP_FILES = NameRules(as_path, as_label, True)
"""Of formats with a file for each image and a `labelmap.txt`."""


def written_names(names: Sequence[str], rule: Rule, apart: bool) -> dict[str, str]:
    """What each name becomes.

    Args:
        names: all different.
        rule: what the format can hold.
        apart: names must differ also where a tool flattens folders or a file system ignores case.

    Returns:
        name -> written name, all different. Where two become one, the one that the rule changed, else the later one,
        gets a number.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold().replace("/", "_") if apart else name

    written: dict[str, str] = {}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for name in sorted(names, key=lambda each: rule(each) != each):
        wish = rule(name)
        found = wish
        while key(found) in taken:
            counts[wish] = counts.get(wish, 1) + 1
            found = f"{wish}_{counts[wish]}"
        taken.add(key(found))
        written[name] = found
    return written


def mapping_text(renamed: Iterable[Renamed]) -> str:
    """The content of `names.csv`."""
    text = csv_text(_HEADER, ((each.kind, each.name, each.written) for each in renamed))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_mapping(path: Path) -> dict[tuple[str, str], str]:
    """(kind, written name) -> name.

    Raises:
        DataError: if it is no such file.
    """
    rows = list(csv.reader(io.StringIO(read_text(path, f"the {NAMES_FILE} that `cpn convert` wrote"), newline="")))
    if not rows or tuple(rows[0]) != _HEADER:
        raise DataError(f"{path}, line 1: expected `{','.join(_HEADER)}`, as `cpn convert` writes it")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(_HEADER):
            raise DataError(f"{path}, line {number}: {len(row)} columns, expected {len(_HEADER)}")
    return {(kind, written): name for kind, name, written in rows[1:]}


def changed(kind: str, written: Mapping[str, str]) -> list[Renamed]:
    """The names that are others in the output."""
    return [Renamed(kind, name, new) for name, new in written.items() if name != new]


def _as_part(part: str) -> str:
    safe = "".join("_" if letter in _FORBIDDEN or _is_control(letter) else letter for letter in part)
    stripped = safe.strip().rstrip(".")
    safe = stripped if stripped == safe else f"{stripped}_"
    if safe.startswith("#"):
        safe = f"_{safe[1:]}"
    if len(safe.encode("utf-8")) > _LONGEST:
        digest = hashlib.sha256(part.encode("utf-8")).hexdigest()[:8]
        safe = safe.encode("utf-8")[: _LONGEST - 9].decode("utf-8", "ignore") + f"_{digest}"
    return safe


def _is_control(letter: str) -> bool:
    return ord(letter) < 32 or ord(letter) == 127 or len(f"a{letter}b".splitlines()) != 1


def _is_broken(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
