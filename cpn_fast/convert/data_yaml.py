"""The class names in YOLO's `data.yaml`, in the forms in which tools write them. Needs no YAML library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from cpn_fast.convert.export import checked_classes
from cpn_fast.files.errors import DataError
from cpn_fast.files.text import read_text

_KEYED = re.compile(r"""(\d+|'\d+'|"\d+")\s*:\s+(.*)""")
_ADVICE = "write the class names, one a line, into a file for --classes"


def class_names_of(path: Path) -> tuple[str, ...]:
    """The names by their numbers: `names:` as a list or with numbers as keys, in brackets or in lines.

    Raises:
        DataError: if there are none, or the numbers have gaps.
    """
    lines = [line for line in read_text(path, "YOLO's data.yaml").splitlines() if line.strip()]
    place = next((number for number, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if place is None:
        raise DataError(f"{path}: no key `names`; expected the class names there, or {_ADVICE}")
    first = _without_comment(lines[place].split(":", 1)[1]).strip()
    following: list[str] = []
    for line in lines[place + 1 :]:
        if line.lstrip().startswith("#"):
            continue
        if not line.startswith((" ", "\t", "-")) and not (first and not _closed(first, following)):
            break
        following.append(_without_comment(line).strip())
    if first:
        return _numbered(_in_brackets(" ".join([first, *following]), path), path)
    entries = [line.removeprefix("-").strip() if line.startswith("-") else line for line in following]
    return _numbered(entries if all(line.startswith("-") for line in following) else _keyed(entries, path), path)


def _closed(first: str, following: list[str]) -> bool:
    return (following[-1] if following else first).endswith(("]", "}"))


def _in_brackets(text: str, path: Path) -> list[str] | dict[int, str]:
    if text[:1] + text[-1:] not in ("[]", "{}"):
        raise DataError(f"{path}: names {text[:60]!r}; expected a list of names, or {_ADVICE}")
    commas = [place for place, letter in _outside_quotes(text) if letter == ","]
    bounds = zip([0, *commas], [*commas, len(text) - 1], strict=True)
    entries = [entry for entry in (text[begin + 1 : end].strip() for begin, end in bounds) if entry]
    return entries if text.startswith("[") else _keyed(entries, path)


def _keyed(entries: list[str], path: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in entries:
        match = _KEYED.fullmatch(entry)
        if match is None:
            raise DataError(f"{path}: names: {entry[:60]!r}; expected `number: name`, or {_ADVICE}")
        found[int(match[1].strip("'\""))] = match[2]
    return found


def _numbered(entries: list[str] | dict[int, str], path: Path) -> tuple[str, ...]:
    if isinstance(entries, dict):
        if sorted(entries) != list(range(len(entries))):
            raise DataError(f"{path}: names: the numbers {sorted(entries)[:10]} are not 0, 1, ...; {_ADVICE}")
        entries = [entries[number] for number in range(len(entries))]
    return checked_classes([_unquoted(entry, path) for entry in entries], f"{path}: names")


def _unquoted(text: str, path: Path) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            raise DataError(f"{path}: names: {text[:60]}: an escape that is not understood; {_ADVICE}") from None
    if text[:1] in "&*!|>%@`" and text:
        raise DataError(f"{path}: names: {text[:60]!r} is YAML that is not understood; {_ADVICE}")
    return text


def _without_comment(text: str) -> str:
    """A line up to a `#` that begins a comment, which is one outside of quotes after a blank."""
    for place, letter in _outside_quotes(text):
        if letter == "#" and text[:place].strip() != text[:place].lstrip():
            return text[:place]
    return text


def _outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    """Place and letter of what is in no quotes; quotes begin at the start of an entry alone (`it's` has none)."""
    quote, before = "", ""
    for place, letter in enumerate(text):
        if quote:
            escaped = quote == '"' and (place - len(text[:place].rstrip("\\"))) % 2
            quote, before = ("", letter) if letter == quote and not escaped else (quote, before)
        elif letter in "'\"" and (before in ("", ",", "[", "{", ":", "-") or text[place - 1] == letter == "'"):
            quote = letter
        else:
            before = letter if letter.strip() else before
            yield place, letter
