"""The names of the backbones: ours, and the two forms in which others come in."""

from __future__ import annotations

import os

from cpn_fast.files.errors import DataError

BACKBONE_NAMES = (
    "resnet38",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v2_stride8",
    "efficientnet_lite2",
    "efficientnet_lite2_stride8",
    "vit_small_patch16",
    "deit_small_patch16",
    "vit_small_patch14_reg4_dinov2",
    "resnet38_tiny",
)
"""The backbones of this package."""

TIMM = "timm:"
"""How the name of one of timm's begins."""


TRUSTED = "CPN_TRUST_BACKBONES"
"""Environment variable: the `package.module:function` that files may name, separated by commas."""


def trust_backbone(name: str) -> None:
    """Let files name this backbone from now on, in this process and those that it starts: a person has named it."""
    if _asks_trust(name) and name not in _trusted():
        os.environ[TRUSTED] = ",".join((*_trusted(), name))


def check_trusted(name: str, where: str) -> None:
    """Refuse to run code, or to fetch a network, that only a file names: it may be somebody else's.

    Args:
        name: the backbone.
        where: the file.

    Raises:
        DataError: naming what has to be said to trust it.
    """
    if _asks_trust(name) and name not in _trusted():
        raise DataError(
            f"{where}: key config.backbone: {name!r} would run code that the file names; if it is yours, repeat the "
            f"name: {TRUSTED}={name} in the environment (a training takes --backbone {name} too)"
        )


def _asks_trust(name: str) -> bool:
    """Of timm only plain names are harmless: `timm:hf-hub:...` and `timm:local-dir:...` read other places."""
    rest = name.removeprefix(TIMM)
    return ":" in rest or (rest != name and "/" in rest)


def _trusted() -> tuple[str, ...]:
    return tuple(filter(None, os.environ.get(TRUSTED, "").split(",")))


def check_backbone_name(name: str) -> None:
    """Refuse what is neither a backbone of this package, nor `timm:NAME`, nor `package.module:function`.

    Raises:
        DataError: naming what is known.
    """
    first, colon, rest = name.partition(":")
    if name not in BACKBONE_NAMES and not (colon and first and rest):
        raise DataError(
            f"--backbone {name}: unknown; expected {', '.join(BACKBONE_NAMES)}, timm:NAME or package.module:function"
        )
