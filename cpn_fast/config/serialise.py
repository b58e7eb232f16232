"""Configs as JSON and back: written plainly, read with every type checked."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cpn_fast.config.groups import flat_groups, with_groups, without_groups
from cpn_fast.files.errors import DataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")

LONGEST_FOUND = 60
"""Characters of a wrong value that an error shows."""
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "path_type": "a path as text",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
}
"""What a value should have been, by pydantic's name of the error; others are told in pydantic's own words."""


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON-ready values; paths become strings, tuples lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return without_groups(type(config), plain(dataclasses.asdict(config)))


def config_from_dict(kind: type[T], values: Any, where: str, prefix: str = "", remedy: str = "") -> T:
    """The inverse of `config_to_dict`; a field that `values` lacks takes its default.

    Args:
        kind: the dataclass.
        values: what `config_to_dict` gave, from JSON.
        where: what to call the values in an error, e.g. a file's path.
        prefix: of the keys in an error, where the values are a part of that file, e.g. "config.".
        remedy: ends an error.

    Raises:
        DataError: for a value of another type than its field, a key that is no field, or a field without default that
            is missing; in one line with the key, what was found and what was expected.
    """
    from pydantic import ValidationError

    dataclass: Any = kind
    try:
        # As JSON text, since pydantic then takes a list for a tuple and a text for a path, but nothing looser.
        grouped = with_groups(kind, values) if isinstance(values, dict) else values
        return _reader(dataclass).validate_json(json.dumps([grouped]))[0]
    except ValidationError as error:
        explained = _explained(kind, error.errors(include_url=False), prefix)
        raise DataError(f"{where}: {explained}{f'; {remedy}' if remedy else ''}") from None


@functools.cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    """Reads a list of one config: a list, because pydantic takes no options beside a plain dataclass."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(list[kind], config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))


def _explained(kind: type, errors: list[ErrorDetails], prefix: str) -> str:
    """The first fault in words, and how many more there are."""
    first = min(errors, key=lambda error: error["type"] == "missing")  # a wrong key says more than what it leaves out
    place = first["loc"][1:]
    in_group = len(place) > 1 and place[0] in flat_groups(kind)
    key = prefix + ".".join(map(str, place[1:] if in_group else place))
    about = f"key {key.rstrip('.')}: " if key else ""
    more = f" ({len(errors) - 1} more such faults)" if len(errors) > 1 else ""
    if first["type"] == "unexpected_keyword_argument":
        return f"{about}unknown setting; expected those of this version of cpn-fast{more}"
    if first["type"] == "missing":
        return f"{about}not found; expected a value{more}"
    expected = first.get("ctx", {}).get("expected") or EXPECTED.get(first["type"]) or first["msg"]
    found = json.dumps(first["input"])
    if len(found) > LONGEST_FOUND:
        found = f"{found[:LONGEST_FOUND]}..."
    return f"{about}found {found}, expected {expected}{more}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return result
