"""Watches how much of an image the CAMs cover while they train: losses between maps can shrink or flood them."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from cpn_fast.training.tensorboard import AREA_THRESHOLD

WINDOW = 20
"""Records (of `log_every` steps each) that a judgement rests on: one of 80 photographs varies by 16%, so many by 4%."""

LEAST_AREA, MOST_AREA = 0.02, 0.6
"""Share of the image above half of the peak that no healthy map leaves, whatever the photographs show."""

SHRUNK, FLOODED = 0.6, 1.2
"""Share of the area at the end of the warm-up below and above which the maps' shape has changed. In trials healthy
losses stayed at 0.75 to 1.06 of it; those that spoilt the maps ended at 0.5, and at 1.25 to 1.6."""

SETTLED = 0.1
"""Change between the last two windows of the warm-up, as a share, up to which its area is taken as settled."""

SHRUNK_UNSETTLED, FLOODED_UNSETTLED = 0.4, 2.0
"""The same where the area was still changing: a plain classifier's grows by half between a sixth of its steps and the
end."""

PAIR_ADVICE = {
    "shrink to their peaks": (
        "a loss between maps that are each divided by their own peak rewards this; try --options.pair-norm image, "
        "--options.tcp-target image or union, or a lower --lr"
    ),
    "flood the images": (
        "a loss whose target is larger than the map rewards this; try --options.tcp-target image, "
        "--options.pair-norm shared, --options.cpcr-target winner, or a lower --lr"
    ),
}
ADVICE = "try a lower --lr, and look at the pictures of the validation"


class AreaWatch:
    """Says once when CAMs shrink to their peaks or flood the images.

    Without a warm-up, or where a resumed run is past it, nothing is known to compare with: then only maps that cover
    next to nothing or nearly everything are spoken of, and only after as many steps as the window holds.

    Args:
        warm_up_steps: steps at the beginning that train a plain classifier, whose maps are taken as healthy.
        paired: the losses compare the maps of complementary patches, so their options can be the reason.
    """

    def __init__(self, warm_up_steps: int = 0, paired: bool = True) -> None:
        self.warm_up_steps, self.paired = warm_up_steps, paired
        self._warm_up: deque[float] = deque(maxlen=2 * WINDOW)
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._said = False

    def observe(self, step: int, sums: Tensor) -> str | None:
        """Take the CAMs' statistics up to a step.

        Args:
            step: number of the step, from 1.
            sums: of `MapStatistics`, [4, K] on the CPU.

        Returns:
            A warning, the first time that one is due.
        """
        images = float(sums[3].sum())
        if images == 0 or self._said:
            return None
        area = float(sums[2].sum()) / images
        if step <= self.warm_up_steps:
            self._warm_up.append(area)
            return None
        self._recent.append(area)
        if len(self._recent) < WINDOW:
            return None
        now = sum(self._recent) / WINDOW
        low, high = self._bounds()
        if low <= now <= high:
            return None
        fault = "shrink to their peaks" if now < low else "flood the images"
        self._said = True
        before = self._healthy()
        compared = "" if before is None else f", {before:.1%} at the end of the warm-up"
        return (
            f"step {step}: the CAMs {fault}: {now:.1%} of an image is above {AREA_THRESHOLD:g} of the peak{compared}; "
            f"{PAIR_ADVICE[fault] if self.paired else ADVICE}"
        )

    def _healthy(self) -> float | None:
        """The area at the end of the warm-up; None where too little of it was seen."""
        return sum(list(self._warm_up)[-WINDOW:]) / WINDOW if len(self._warm_up) >= WINDOW else None

    def _bounds(self) -> tuple[float, float]:
        """The areas between which nothing is said."""
        healthy = self._healthy()
        if healthy is None:
            return LEAST_AREA, MOST_AREA
        earlier = list(self._warm_up)[:-WINDOW]
        settled = len(earlier) == WINDOW and abs(healthy - sum(earlier) / WINDOW) <= SETTLED * healthy
        low, high = (SHRUNK, FLOODED) if settled else (SHRUNK_UNSETTLED, FLOODED_UNSETTLED)
        return max(LEAST_AREA, low * healthy), min(MOST_AREA, high * healthy)
