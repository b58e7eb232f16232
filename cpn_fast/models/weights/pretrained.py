"""Loads backbone weights from `.params` (MXNet), `.pth` and `.safetensors`, and checkpoints of the SEAM/psa family."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import open_regular
from cpn_fast.models.backbones import Backbone, FeatureBackbone
from cpn_fast.models.weights.archive import check_archive, check_sizes
from cpn_fast.models.weights.layouts import (
    best_fit,
    expected_tensors,
    in_timm_layout,
    is_head,
    strip_prefixes,
    timm_key,
)
from cpn_fast.models.weights.mxnet_params import read_params, resnet38_key

if TYPE_CHECKING:
    from cpn_fast.models.cam import CamNet

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
"""A state dict: key -> tensor."""

PICKLES = (".pth", ".pt", ".ckpt", ".pth.tar")
"""Suffixes of files that torch.save writes."""

MOST_KEYS = 10
"""So many keys of each kind are listed where weights do not fit."""

SEAM_HEADS = {"fc8": "classifier", "f8_3": "f_mid", "f8_4": "f_high", "f9": "f9"}
"""Heads of the SEAM/psa family -> CamNet's."""


def read_weights(path: str | Path) -> State:
    """Read the tensors of a weights file, by its suffix.

    Args:
        path: `.params` (ResNet38 in MXNet's names, translated here), `.pth` / `.pt` / `.ckpt` / `.pth.tar` (a
            `state_dict`, or a dict that holds one under `state_dict` or `model`), or `.safetensors`. DINOv2's own keys
            are translated to timm's.

    Returns:
        Key -> tensor on the CPU.

    Raises:
        DataError: the file is missing, of another kind, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such weights file; give the path of a .params, .pth or .safetensors file")
    if path.suffix == ".params":
        return _read_params(path)
    if path.suffix == ".safetensors":
        return in_timm_layout(read_safetensors(path))
    if path.name.endswith(PICKLES):
        return in_timm_layout(_read_pth(path))
    raise DataError(f"{path}: unknown weights format {path.suffix!r}; expected .params, .pth or .safetensors")


def read_safetensors(path: Path, remedy: str = "fetch or save it again") -> State:
    """The tensors of a safetensors file, on the CPU. Raises DataError, which ends with `remedy`, for a damaged one."""
    try:
        with open_regular(path):
            return load_file(path)
    except DataError:
        raise
    except Exception as error:  # of a damaged header nearly anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a readable safetensors file ({reason}); {remedy}") from error


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise DataError, naming the first of them, if tensors hold NaN or infinity."""
    wrong = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DataError(
            f"{path}: {wrong[0]}{more} of {len(state)} tensors hold NaN or infinity: the training that wrote them "
            "diverged, or the file is damaged; train again with a lower --lr, or give other weights"
        )


def _read_params(path: Path) -> State:
    state: State = {}
    names: dict[str, str] = {}
    for name, array in read_params(path).items():
        key = resnet38_key(name)
        if key in names:
            raise DataError(f"{path}: {names[key]!r} and {name!r} both mean {key!r}; expected one of them")
        names[key], state[key] = name, torch.from_numpy(array)
    return state


def _read_pth(path: Path) -> State:
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(
            f"{path}: not a readable PyTorch weights file ({type(error).__name__}); it is damaged or holds more than "
            "tensors: fetch it again, or save its state_dict() alone"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a state_dict (key -> tensor)")
    check_sizes(content, path)
    return content


def load_backbone_weights(backbone: Backbone, path: str | Path) -> tuple[str, ...]:
    """Load a weights file into a backbone.

    Args:
        backbone: receives the weights in place; they are cast to its dtype.
        path: see `read_weights`. Prefixes of the keys (`module.`, `_orig_mod.`, `model.`, `backbone.`) are taken off
            where the backbone's own keys are found behind them: so of a whole network, as a run's `model.safetensors`
            holds it, the backbone is taken, and one training begins where another ended.

    Returns:
        The keys that were skipped: ImageNet classifier heads, `num_batches_tracked`, what else a whole network has,
        and of a `FeatureBackbone` what its module leaves out of the network.

    Raises:
        DataError: lists missing, unexpected and misshapen keys, and says which backbone the weights fit.
    """
    state = read_weights(path)
    own = expected_tensors(backbone)
    if isinstance(backbone, FeatureBackbone):
        state = {timm_key(key): value for key, value in state.items()}
    found, prefix, others = strip_prefixes(state, own)
    if prefix:
        logger.info("%s: the keys begin with %r, which is taken off", path, prefix)
    skipped = tuple(key for key in found if key not in own and (is_head(key) or isinstance(backbone, FeatureBackbone)))
    if named := [key for key in (*others, *skipped) if not key.endswith("num_batches_tracked")]:
        logger.info("%s: skipped %d keys: %s", path, len(named), _listed(named))
    kept = {key: value for key, value in found.items() if key not in skipped}
    check_finite(kept, path)
    _copy_exactly(backbone, own, kept, path)
    return others + skipped


def _copy_exactly(backbone: Backbone, own: State, state: State, path: str | Path) -> None:
    """Copy `state` into the backbone's tensors; any difference in keys or shapes is an error."""
    shared = [key for key in own if key in state]
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "misshapen": [
            f"{key} (found {list(state[key].shape)}, expected {list(own[key].shape)})"
            for key in shared
            if state[key].shape != own[key].shape
        ],
        "not floating point": [f"{key} ({state[key].dtype})" for key in shared if not state[key].is_floating_point()],
    }
    if any(problems.values()):
        name, fit = type(backbone).__name__, best_fit(state)
        if fit is not None and fit.exact:
            raise DataError(
                f"{path}: holds the weights of {fit.backbone}, expected those of {name}; give --backbone "
                f"{' or '.join(fit.names)}, or other weights"
            )
        found = "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys)
        raise DataError(
            f"{path}: does not hold the weights of {name}: {found}. Check that --backbone fits the file; "
            "`cpn weights check` says what it holds"
        )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(state[key])


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    return ", ".join(keys[:MOST_KEYS]) + more


def read_seam_checkpoint(path: str | Path, num_classes: int) -> tuple[State, State]:
    """Read a checkpoint of the SEAM/psa family: ResNet38 with `fc8` and, where trained, `f8_3`, `f8_4`, `f9`.

    Args:
        path: the `.pth` file.
        num_classes: K foreground classes. SEAM's `fc8` has K + 1 rows; the background's, which it never trains, is
            left out.

    Returns:
        The backbone's state, and the heads under CamNet's keys: `classifier.weight` [K, 4096, 1, 1], `f_mid.weight`
        [64, 512, 1, 1], `f_high.weight` [128, 1024, 1, 1], `f9.weight` [192, 195, 1, 1]; psa has the first alone.

    Raises:
        DataError: no `fc8`, or one of another number of classes.
    """
    state = {key: value for key, value in read_weights(path).items() if not key.endswith("num_batches_tracked")}
    heads = {
        f"{ours}.weight": state.pop(f"{theirs}.weight")
        for theirs, ours in SEAM_HEADS.items()
        if f"{theirs}.weight" in state
    }
    if "classifier.weight" not in heads:
        raise DataError(f"{path}: no key fc8.weight, expected a checkpoint of SEAM or psa")
    rows = heads["classifier.weight"].shape[0]
    if rows not in (num_classes, num_classes + 1):
        raise DataError(f"{path}: fc8.weight is for {rows} classes, expected {num_classes} (or one more, background)")
    heads["classifier.weight"] = heads["classifier.weight"][rows - num_classes :]
    return state, heads


def load_seam_checkpoint(net: CamNet, path: str | Path) -> None:
    """Load a checkpoint of the SEAM/psa family into a CamNet on ResNet38, for scoring.

    Heads that `net` does not have are passed over with a log line. PRCM's `phi`, which the family does not know,
    becomes a copy of `f9`, as at its initialisation.

    Args:
        net: receives the weights in place.
        path: the `.pth` file.

    Raises:
        DataError: lists what is missing, unexpected or misshapen.
    """
    state, heads = read_seam_checkpoint(path, net.num_classes)
    check_finite({**state, **heads}, path)
    own = {key: value for key, value in net.state_dict().items() if key.removesuffix(".weight") in SEAM_HEADS.values()}
    wrong = [
        f"{key} (found {list(heads[key].shape) if key in heads else 'nothing'}, expected {list(value.shape)})"
        for key, value in own.items()
        if key not in heads or heads[key].shape != value.shape
    ]
    if wrong:
        raise DataError(f"{path}: does not fit the network's heads: {', '.join(wrong)}. Check its refinement")
    _copy_exactly(net.backbone, expected_tensors(net.backbone), state, path)
    net.affinity = "cosine"  # what the family's heads were trained for
    net.load_state_dict({key: heads[key] for key in own}, strict=False)
    if unused := sorted(heads.keys() - own.keys()):
        logger.info("%s: skipped heads that the network does not have: %s", path, ", ".join(unused))
    if hasattr(net, "phi"):
        with torch.no_grad():
            net.phi.weight.copy_(heads["f9.weight"].flatten(1))
