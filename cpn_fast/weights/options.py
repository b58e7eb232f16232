"""Options of `cpn weights check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class CheckWeightsConfig:
    """Say what a file of weights is, and which backbone it fits.

    Attributes:
        file: .params, .pth, .pth.tar, .pt, .ckpt or .safetensors.
    """

    file: Annotated[Path, tyro.conf.Positional]
