"""Loads backbone weights from `.params` (MXNet), `.pth` and `.safetensors`, and checkpoints of the SEAM/psa family."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cpn_fast.files.errors import DataError
from cpn_fast.models.backbones import Backbone

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
HEADS = ("fc.", "classifier.", "linear1000")
"""Prefixes of the ImageNet classifiers' keys, which no backbone has."""


def read_weights(path: str | Path) -> State:
    """Read the tensors of a weights file, by its suffix.

    Args:
        path: `.params` (ResNet38 in MXNet's names, translated here), `.pth` / `.pt` / `.ckpt`, or `.safetensors`.

    Returns:
        Key -> tensor on the CPU.

    Raises:
        DataError: the file is missing, of another kind, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such weights file; give the path of a .params, .pth or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise DataError(f"{path}: not a readable safetensors file ({error}); download or save it again") from error
    if path.suffix in (".pth", ".pt", ".ckpt"):
        return _read_pth(path)
    raise DataError(f"{path}: unknown weights format {path.suffix!r}; expected .params, .pth or .safetensors")


def _read_pth(path: Path) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable PyTorch weights file ({reason}); save a plain state_dict") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: holds {type(content).__name__}, expected a state_dict (key -> tensor)")
    # DataParallel puts its own name before every key
    prefix = "module." if content and all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def load_backbone_weights(backbone: Backbone, path: str | Path) -> tuple[str, ...]:
    """Load a weights file into a backbone.

    Args:
        backbone: receives the weights in place; they are cast to its dtype.
        path: see `read_weights`.

    Returns:
        The keys that were passed over: classifier heads and `num_batches_tracked`.

    Raises:
        DataError: lists every missing, unexpected and misshapen key.
    """
    state = read_weights(path)
    skipped = tuple(key for key in state if key.startswith(HEADS) or key.endswith("num_batches_tracked"))
    if skipped:
        logger.info("%s: passed over %d keys: %s", path, len(skipped), ", ".join(skipped))
    _load_exactly(backbone, {key: value for key, value in state.items() if key not in skipped}, path)
    return skipped


def _load_exactly(backbone: Backbone, state: State, path: str | Path) -> None:
    """Copy `state` into the backbone; any difference in keys or shapes is an error."""
    own = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "misshapen": [
            f"{key} (found {list(state[key].shape)}, expected {list(value.shape)})"
            for key, value in own.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        name = type(backbone).__name__
        raise DataError(f"{path}: does not hold the weights of {name}: {found}. Check that --backbone fits the file")
    backbone.load_state_dict(state, strict=False)
