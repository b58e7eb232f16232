"""Checks of options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence

from cpn_fast.files.errors import DataError
from cpn_fast.metrics.maps import scale_name


def check_positive(**counts: int) -> None:
    """Raise DataError for an option that counts something and is below 1; keywords are the options' names."""
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"--{name.replace('_', '-')} {value}: expected at least 1")


def check_scales(scales: Sequence[float]) -> None:
    """Raise DataError unless the scale factors are different numbers above 0 and at most 4."""
    if not scales or not all(0 < scale <= 4 for scale in scales) or len(set(map(scale_name, scales))) < len(scales):
        raise DataError(
            f"--scales {' '.join(map(str, scales)) or '(none)'}: expected different numbers above 0 and at most 4"
        )
