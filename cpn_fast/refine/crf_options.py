"""The numbers of a dense CRF on the command line: a preset's, and each of them as an option."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cpn_fast.files.errors import DataError

if TYPE_CHECKING:
    from cpn_kernels.ops.dense_crf import Settings

CrfPreset = Literal["affinity", "segmentation"]


@dataclass(frozen=True, kw_only=True)
class CrfOptions:
    """Base of the settings of commands that run a dense CRF.

    Attributes:
        iterations: of the CRF's mean field; None = the preset's, as for all numbers of the CRF.
        gaussian_sxy: standard deviation of the position kernel, in pixels.
        gaussian_compat: its weight; 0 = without it.
        bilateral_sxy: standard deviation of position in the kernel of position and colour, in pixels.
        bilateral_srgb: standard deviation of colour, in 8-bit steps.
        bilateral_compat: weight of that kernel; 0 = without it.
    """

    iterations: int | None = None
    gaussian_sxy: float | None = None
    gaussian_compat: float | None = None
    bilateral_sxy: float | None = None
    bilateral_srgb: float | None = None
    bilateral_compat: float | None = None

    def crf_settings(self, preset: CrfPreset) -> Settings:
        """The preset's numbers with those that are given. Raises DataError for one out of range."""
        from cpn_kernels.ops.dense_crf import AFFINITY_LABELS, SEGMENTATION, Settings

        presets: dict[CrfPreset, Settings] = {"affinity": AFFINITY_LABELS, "segmentation": SEGMENTATION}
        names = [field.name for field in dataclasses.fields(Settings)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        crf = dataclasses.replace(presets[preset], **given)
        for name, value in dataclasses.asdict(crf).items():
            deviation = name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb")
            if not math.isfinite(value) or value < 0 or (deviation and value == 0):
                expected = "a number above 0" if deviation else "0 or more"
                raise DataError(f"--{name.replace('_', '-')} {value}: expected {expected}")
        return crf
