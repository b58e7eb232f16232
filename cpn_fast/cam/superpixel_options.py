"""Options of `cpn superpixels`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpn_fast.cluster.options import EngineOptions
from cpn_fast.config.training import AugmentOptions, PatchOptions


@dataclass(frozen=True)
class SuperpixelsConfig(EngineOptions):
    """Fill the cache of superpixels ahead of a training, which then begins at once.

    Superpixels depend on the options of `patch` and on the crop's size: give those of the training.

    Attributes:
        data: source as of `cpn train`, e.g. `voc:PATH`, `folder:PATH`, `wds:PATTERN` or a bare path.
        split: split with image labels.
        patch: how images fall into patches.
        augment: the training's crops.
        workers: processes that read, and without a cluster compute; None = one per core.
    """

    data: str
    split: str = "train"
    patch: PatchOptions = field(default_factory=PatchOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    workers: int | None = None
