"""Groups of settings that are flat for people: their names stand without the group's, as options and in config.json."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import tyro

FLAT = tyro.conf.OmitArgPrefixes
"""Marks a field of a config as such a group: `optimizer: Annotated[OptimizerOptions, FLAT]`."""


@functools.cache
def flat_groups(kind: Any) -> dict[str, Any]:
    """The flat groups of a config class: field -> dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: get_args(hint)[0] for name, hint in hints.items() if FLAT in get_args(hint)}


def without_groups(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config's fields with those of its groups among them."""
    groups = flat_groups(kind)
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= value if name in groups else {name: value}
    return result


def with_groups(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `without_groups`. A group's own name among the values is kept, where no field has it."""
    result = dict(values)
    for group, members in flat_groups(kind).items():
        names = [field.name for field in dataclasses.fields(members) if field.name in result]
        own = {group: result[group]} if group in result else {}
        result[group] = {name: result.pop(name) for name in names} | own
    return result
