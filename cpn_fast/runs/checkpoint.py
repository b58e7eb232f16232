"""Checkpoints for exact resume: one file, replaced atomically, read without pickle's code execution."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpn_fast.files.atomic import atomic_write
from cpn_fast.files.errors import DataError
from cpn_fast.models.weights.archive import check_archive

FORMAT = 1
KEYS = ("format", "step", "config", "classes", "model", "optimizer", "scaler")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) to `path`, which holds the old or the new file whole.

    Args:
        path: the checkpoint file.
        state: `step`, `config`, `classes`, `model`, `optimizer` and `scaler`, and `teacher` where a run has one.

    Raises:
        OSError: if it cannot be written, such as on a full disk.
    """
    with atomic_write(path) as file:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # torch's writer stumbles over the file's own error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        DataError: if the file is no checkpoint of this program.
    """
    check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not a readable checkpoint ({reason}); delete it to start the run anew") from error
    missing = [key for key in KEYS if not isinstance(state, dict) or key not in state]
    if missing or state["format"] != FORMAT:
        found = f"lacks {', '.join(missing)}" if missing else f"has format {state['format']}"
        raise DataError(f"{path}: {found}; expected a checkpoint of cpn-fast, format {FORMAT}")
    return state


def state_sha256(state: Any) -> str:
    """SHA-256 over all values of a state dict, in order: equal exactly if every bit of every tensor is equal."""
    digest = hashlib.sha256()
    _update(digest, state)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            digest.update(f"{key!r}: ".encode())
            _update(digest, item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        digest.update(f"list {len(value)} ".encode())
        for item in value:
            _update(digest, item)
    else:
        digest.update(f"{value!r} ".encode())
