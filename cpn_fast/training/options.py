"""What the command lines of all kinds of training share: settings that --resume takes from the run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Final

from cpn_fast.config.training import C
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


def parse_training(argv: Sequence[str], default: C, prog: str, description: str) -> C:
    """Settings of a training from the command line; on --resume the run's own, then those given.

    Args:
        argv: arguments without the program's name.
        default: what the arguments override where no run is resumed.
        prog: the command, for the help.
        description: of it, for the help.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run of this kind.
    """
    import tyro

    kind, output = type(default), value_of(argv, "--output")
    if "--resume" in argv and output is not None:
        default = dataclasses.replace(RunFolder(output).config_of(kind), resume=False)
    elif not {"--help", "-h", "--backbone"} & {word.partition("=")[0] for word in argv}:
        default = suited_to_machine(default, argv)
    return tyro.cli(kind, args=list(argv), default=default, prog=prog, description=description)


def suited_to_machine(default: C, argv: Sequence[str]) -> C:
    """Defaults for a command line that names no backbone: on a CPU a network that it can train, and says so.

    Args:
        default: what the arguments override; where its backbone or crop is not the class's own, it is kept.
        argv: arguments without the program's name. `--weights` in MXNet's format are ResNet38's.
    """
    from cpn_fast.device import has_gpu

    own = next(field.default for field in dataclasses.fields(default) if field.name == "backbone")
    weights, accelerator = value_of(argv, "--weights"), value_of(argv, "--accelerator")
    if default.backbone != own or (weights or "").endswith(".params"):
        return default
    if accelerator != "cpu" and (accelerator == "cuda" or has_gpu()):
        return default
    augment = default.augment
    if augment.crop == type(augment)().crop:
        augment = dataclasses.replace(augment, crop=CPU_CROP)
    log.info(
        "no GPU and no --backbone: taking %s with crops of %d pixels, unless --crop says otherwise (with a GPU: %s)",
        CPU_BACKBONE, augment.crop, own,
    )  # fmt: skip
    return dataclasses.replace(default, backbone=CPU_BACKBONE, augment=augment)
