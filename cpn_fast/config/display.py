"""A config as the command that a person would type for it: for display only, nothing reads it back."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from cpn_fast.config.presets import preset_defaults
from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import TrainConfig, replace_dotted


def command_text(command: str, config: Any) -> str:
    """The command line that gives a config, e.g. `cpn train --data demo: --output runs/demo --lr 0.04`.

    Args:
        command: behind `cpn`, e.g. "segment train".
        config: what its options become; those at their default are not shown.
    """
    positional = _positional(type(config))
    words, options = ["cpn", *command.split()], list[str]()
    for name, value in changed_settings(config).items():
        if name in positional:
            words += map(str, value if isinstance(value, list) else [value])
        else:
            options += _option(name.replace("_", "-"), value)
    return shlex.join(words + options)


def resuming(command: str, config: Any) -> str:
    """The command line that resumes a job over images: `command_text` of all shards, without doing anything twice."""
    again = {name: value for name, value in {"shard": None, "overwrite": False}.items() if hasattr(config, name)}
    return command_text(command, dataclasses.replace(config, **again))


def changed_settings(config: Any) -> dict[str, Any]:
    """The settings that differ from their defaults, of a CAM training from those of its preset, by dotted name."""
    values = flat(config_to_dict(config))
    defaults = default_settings(config)
    if isinstance(config, TrainConfig):
        preset = replace_dotted(config, preset_defaults(config.preset))
        changed_by_preset = flat(config_to_dict(preset))
        defaults |= {name: changed_by_preset[name] for name in preset_defaults(config.preset)}
    defaults.pop("backbone", None)  # shown always, since without it a command line takes what suits the machine
    return {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}


def default_settings(config: Any) -> dict[str, Any]:
    """The defaults of a config's class by dotted name; a field without one is not among them."""
    required = [
        field.name
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    blank = type(config)(**{name: getattr(config, name) for name in required})
    return {name: value for name, value in flat(config_to_dict(blank)).items() if name not in required}


def _positional(kind: type) -> set[str]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        name for name, hint in hints.items() if get_origin(hint) is Annotated and tyro.conf.Positional in get_args(hint)
    }


def _option(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        path, dot, last = name.rpartition(".")
        yield f"--{name}" if value else f"--{path}{dot}no-{last}"
        return
    yield f"--{name}"
    yield from map(str, value if isinstance(value, list) else [value])
