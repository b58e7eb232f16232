"""What the command lines of all kinds of training share: settings that --resume takes from the run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Final, get_args

from cpn_fast.config.device_options import Switch
from cpn_fast.config.ranges import check_ranges
from cpn_fast.config.training import C, replace_dotted
from cpn_fast.runs.folder import RunFolder

log = logging.getLogger(__name__)

CPU_BACKBONE: Final = "mobilenet_v2"
CPU_CROP = 256
"""What a CPU is given to train where nothing else is asked for: some seconds a step instead of minutes."""


def value_of(argv: Sequence[str], name: str) -> str | None:
    """What `--name value` or `--name=value` says among the arguments; None without it."""
    for index, argument in enumerate(argv):
        if argument == name and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def with_values(argv: Sequence[str]) -> list[str]:
    """Arguments in which `--compile` and `--no-compile` of earlier versions, which took no value, have one."""
    words: list[str] = []
    for index, word in enumerate(argv):
        following = argv[index + 1] if index + 1 < len(argv) else ""
        if word == "--no-compile":
            words += ["--compile", "off"]
        elif word == "--compile" and following not in get_args(Switch):
            words += ["--compile", "on"]
        else:
            words.append(word)
    return words


def parse_training(argv: Sequence[str], default: C, recipe: Callable[[C], C] | None, prog: str, description: str) -> C:
    """Settings of a training from the command line; on --resume the run's own, then those given.

    Args:
        argv: arguments without the program's name.
        default: what the arguments override where no run is resumed.
        recipe: what the caller makes of the default. Where it names no backbone either, the machine decides.
        prog: the command, for the help.
        description: of it, for the help.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run of this kind, or a number is out of range.
    """
    import tyro

    for_cpu = False
    kind, output = type(default), value_of(argv, "--output")
    if "--resume" in argv and output is not None:
        default = replace_dotted(RunFolder(output).config_of(kind), {"resume": False})
    else:
        default = default if recipe is None else recipe(default)
        for_cpu = default.backbone == kind.backbone and takes_cpu_network(argv)
        if for_cpu:
            default = _for_cpu(default)
    config = tyro.cli(kind, args=with_values(argv), default=default, prog=prog, description=description)
    check_ranges(config)
    if for_cpu:  # said last: an option that does not fit is the only thing to be said
        log.info(
            "no GPU and no --backbone: taking %s and, unless --crop says otherwise, crops of %d pixels (with a GPU: "
            "resnet38 and 448)", CPU_BACKBONE, CPU_CROP,
        )  # fmt: skip
    return config


def takes_cpu_network(argv: Sequence[str]) -> bool:
    """Whether a command line leaves the network to a machine without GPU: then `CPU_BACKBONE`.

    Args:
        argv: arguments without the program's name. `--weights` in MXNet's format are ResNet38's, the default else.
    """
    names = {word.partition("=")[0] for word in argv}
    if names & {"--help", "-h", "--backbone"} or (value_of(argv, "--weights") or "").endswith(".params"):
        return False
    from cpn_fast.device import has_gpu

    accelerator = value_of(argv, "--accelerator")
    return accelerator == "cpu" or (accelerator != "cuda" and not has_gpu())


def _for_cpu(default: C) -> C:
    augment = default.augment
    if augment.crop == type(augment).crop:
        augment = dataclasses.replace(augment, crop=CPU_CROP)
    return dataclasses.replace(default, backbone=CPU_BACKBONE, augment=augment)
