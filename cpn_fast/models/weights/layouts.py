"""Whose weights these are: key prefixes that other programs add, and the backbone whose layout a file has."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from cpn_fast.models.backbones import BACKBONES, Backbone, FeatureBackbone, create_backbone

PREFIXES = ("module.", "model.", "backbone.", "body.")
"""What DataParallel, trainers, networks with a backbone and `FeatureBackbone` put before the keys of a network."""

COMPILED = "_orig_mod."
"""What torch.compile puts into keys, wherever a compiled part begins."""

DEPTH = 4
"""So many prefixes, one behind the other, are looked for."""

HEADS = ("fc.", "classifier.", "linear1000", "head.")
"""How the keys of the ImageNet classifiers begin; no backbone of this package has them."""

SAME_LAYOUT = {
    "mobilenet_v2_stride8": "mobilenet_v2",
    "efficientnet_lite2_stride8": "efficientnet_lite2",
    "deit_small_patch16": "vit_small_patch16",
}
"""Backbones that differ from another in strides alone, or in how images are normalised: their weights look the same."""


class Stripped(NamedTuple):
    """Tensors without what was put before their keys.

    Attributes:
        state: key -> tensor.
        prefix: what was taken off; "" where nothing was.
        others: keys of the file that do not begin so.
    """

    state: dict[str, Tensor]
    prefix: str
    others: tuple[str, ...]


def strip_prefixes(state: Mapping[str, Tensor], own: Container[str]) -> Stripped:
    """Take off the prefixes under which most of a network's own keys are found; of equal finds the shortest.

    Args:
        state: key -> tensor, as a file holds them.
        own: the network's keys.
    """
    plain = {key.replace(COMPILED, ""): key for key in state}
    prefixes = [""]
    for _ in range(DEPTH):
        longer = (before + prefix for before in prefixes for prefix in PREFIXES)
        new = [found for found in longer if found not in prefixes and any(key.startswith(found) for key in plain)]
        prefixes += new
        if not new:
            break

    def count(prefix: str) -> int:
        return sum(key.startswith(prefix) and key[len(prefix) :] in own for key in plain)

    best = max(prefixes, key=lambda prefix: (count(prefix), -len(prefix)))
    kept = {key: original for key, original in plain.items() if key.startswith(best)}
    others = tuple(original for key, original in plain.items() if key not in kept)
    return Stripped({key[len(best) :]: state[original] for key, original in kept.items()}, best, others)


def is_head(key: str) -> bool:
    """Whether a key is an ImageNet classifier's, or counts the batches of a batch norm: no weight of a backbone."""
    return key.startswith(HEADS) or key.endswith("num_batches_tracked")


def timm_key(key: str) -> str:
    """A key as the whole network says it: timm's `features_only` calls `stages.0.x` `stages_0.x`."""
    return re.sub(r"_(?=\d)", ".", key)


def in_timm_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's own keys with registers in timm's, tensors of others as they are.

    Its position embeddings begin with that of the class token, which timm's file adds to that token; the token that
    hides patches belongs to the pretraining.

    Args:
        state: key -> tensor, as a file holds them.
    """
    found = dict(state)
    positions = found.get("pos_embed")
    if "register_tokens" not in found or "cls_token" not in found or positions is None or positions.ndim != 3:
        return found
    found.pop("mask_token", None)
    found["reg_token"] = found.pop("register_tokens")
    found["cls_token"] = found["cls_token"] + positions[:, :1]
    found["pos_embed"] = positions[:, 1:]
    return found


def expected_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """The tensors that a weights file has to hold for a backbone, by the keys that it may have there."""
    if isinstance(backbone, FeatureBackbone):
        held = {timm_key(key): value for key, value in backbone.body.state_dict().items()}
    else:
        held = dict(backbone.state_dict())
    return {key: value for key, value in held.items() if not key.endswith("num_batches_tracked")}


@cache
def layout_of(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the weights of a backbone of this package."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in expected_tensors(create_backbone(name)).items()}


@dataclass(frozen=True)
class Fit:
    """How far weights have the layout of a backbone.

    Attributes:
        backbone: its name; those of `SAME_LAYOUT` go with it.
        prefix: what stands before its keys.
        matched: keys of the right shape.
        missing: its keys that are not there.
        misshapen: its keys of another shape.
        unexpected: other keys, but for classifiers and what has no such prefix.
    """

    backbone: str
    prefix: str
    matched: int
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the backbone takes the weights."""
        return not (self.missing or self.misshapen or self.unexpected)

    @property
    def names(self) -> tuple[str, ...]:
        """The names for --backbone that take weights of this layout."""
        return (self.backbone, *(name for name, same in SAME_LAYOUT.items() if same == self.backbone))


def best_fit(state: Mapping[str, Tensor]) -> Fit | None:
    """The backbone of this package whose weights these are, or most resemble; None where none has a key of them."""
    fits = [_fit(state, name) for name in BACKBONES if name not in SAME_LAYOUT]
    best = max(fits, key=lambda fit: (fit.exact, fit.matched / len(layout_of(fit.backbone))))
    return best if best.matched else None


def _fit(state: Mapping[str, Tensor], name: str) -> Fit:
    own = layout_of(name)
    found, prefix, _ = strip_prefixes(state, own)
    shared = [key for key in own if key in found]
    misshapen = tuple(key for key in shared if tuple(found[key].shape) != own[key])
    return Fit(
        backbone=name,
        prefix=prefix,
        matched=len(shared) - len(misshapen),
        missing=tuple(key for key in own if key not in found),
        misshapen=misshapen,
        unexpected=tuple(key for key in found if key not in own and not is_head(key)),
    )
