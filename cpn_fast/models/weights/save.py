"""Writes weights as safetensors, the same bytes for the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from cpn_fast.files.atomic import atomic_write


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one step.

    The library keeps metadata in a hash map, whose order changes from call to call; here the header is written anew
    with its keys sorted, so that equal weights and metadata give equal files.

    Args:
        path: the file.
        weights: key -> tensor, on any device.
        metadata: key -> text.

    Raises:
        OSError: if it cannot be written, such as on a full disk.
    """
    content = memoryview(
        save({name: value.detach().cpu().contiguous() for name, value in weights.items()}, metadata=dict(metadata))
    )
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(bytes(content[8 : 8 + length])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the tensors aligned
    with atomic_write(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(content[8 + length :])
