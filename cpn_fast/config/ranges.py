"""The range of every number that a training takes: one place, asked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import TrainingConfig
from cpn_fast.files.errors import DataError


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low: its lower end.
        high: its upper end; None = no other than that the number is finite.
        above: the lower end does not belong to it.
        below: the upper end does not belong to it.
    """

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in it; NaN and infinities never do."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        from_low = value > self.low if self.above else value >= self.low
        return from_low and (self.high is None or (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        """What was expected, in words."""
        if self.high is None:
            return f"a number above {self.low}" if self.above else f"at least {self.low}"
        if not self.above and not self.below:
            return f"{self.low}..{self.high}"
        low = f"above {self.low}" if self.above else f"{self.low} or more"
        return f"{low}, {'below' if self.below else 'at most'} {self.high}"


COUNT, NONE_OR_MORE = Range(1), Range(0)
POSITIVE, SHARE = Range(0, above=True), Range(0, 1)
PART, DROPPED = Range(0, 1, above=True), Range(0, 1, below=True)
LARGEST_CROP = 4096
"""Pixels; the maps of one such crop take gigabytes already."""

RANGES: Mapping[str, Range] = {
    "epochs": COUNT,
    "max_steps": COUNT,
    "batch_size": COUNT,
    "micro_batch": COUNT,
    "timeout": COUNT,
    "seed": Range(-(2**63), 2**63 - 1),
    "workers": Range(0, 1024),
    "checkpoint_every": COUNT,
    "log_every": COUNT,
    "eval_every": NONE_OR_MORE,
    "val_images": COUNT,
    "augment.crop": Range(16, LARGEST_CROP),
    "augment.resize": Range(1, 4 * LARGEST_CROP),
    "augment.jitter": SHARE,
    "lr": POSITIVE,
    "momentum": DROPPED,
    "weight_decay": DROPPED,
    "poly_power": NONE_OR_MORE,
    "head_lr_factor": NONE_OR_MORE,
    "devices": COUNT,
    "refine_lr_factor": NONE_OR_MORE,
    "pixel_lr_factor": NONE_OR_MORE,
    "options.ohem": PART,
    "options.min_pool_weight": NONE_OR_MORE,
    "options.pixel_weight": NONE_OR_MORE,
    "options.teacher": DROPPED,
    "options.teacher_band": SHARE,
    "options.p_hidden": SHARE,
    "options.seam_scale": PART,
    "options.dropout": DROPPED,
    "options.warm_up": DROPPED,
    "options.warm_up_epochs": NONE_OR_MORE,
    "patch.segments": Range(1, 65535),
    "patch.compactness": POSITIVE,
    "patch.grid_sides": COUNT,
    "dropout": DROPPED,
    "beta": SHARE,
    "low_share": POSITIVE,
    "high_share": POSITIVE,
}
"""Every number of every kind of training by its name in config.json; of several numbers each has to lie in it."""

HIGHEST_HUE = 0.5


def check_ranges(config: TrainingConfig) -> None:
    """Refuse numbers that are not finite or out of range.

    Args:
        config: of any kind of training; None = not given is in every range.

    Raises:
        DataError: naming the option as on the command line, with its value and what was expected.
    """
    for name, value in flat(config_to_dict(config)).items():
        numbers = value if isinstance(value, list) else [value]
        if name in RANGES and not all(number is None or RANGES[name].holds(number) for number in numbers):
            raise out_of_range(name, value, str(RANGES[name]) + (", each" if len(numbers) > 1 else ""))
    hue = config.augment.jitter[3]
    if hue > HIGHEST_HUE:
        raise out_of_range(
            "augment.jitter", list(config.augment.jitter), f"at most {HIGHEST_HUE} for the hue, the last"
        )
    if config.augment.resize and config.augment.resize[0] > config.augment.resize[1]:
        raise out_of_range("augment.resize", list(config.augment.resize), "the shorter long side first")


def out_of_range(name: str, value: Any, expected: str) -> DataError:
    """The error for a setting, e.g. `options.p_hidden`, by its option."""
    option = ALIASES.get(name, name).replace("_", "-")
    found = " ".join(map(str, value)) if isinstance(value, list) else value
    return DataError(f"--{option} {found}: expected {expected}")


ALIASES = {"augment.crop": "crop"}
"""Settings that the documentation calls by another option than their place."""
