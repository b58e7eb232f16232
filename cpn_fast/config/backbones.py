"""The names of the backbones: ours, and the two forms in which others come in."""

from __future__ import annotations

from cpn_fast.files.errors import DataError

BACKBONE_NAMES = (
    "resnet38",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v2_stride8",
    "efficientnet_lite2",
    "efficientnet_lite2_stride8",
    "resnet38_tiny",
)
"""The backbones of this package."""

TIMM = "timm:"
"""How the name of one of timm's begins."""


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
