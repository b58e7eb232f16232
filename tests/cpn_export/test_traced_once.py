"""What the other tests of exports share: no two modules that differ are taken for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="needs the [train] packages")
pytest.importorskip("onnxscript", reason="needs the [train] packages")

from torch import nn  # noqa: E402

from cpn_fast.config.refine import RefineOptions  # noqa: E402
from cpn_fast.models.cam import CamNet  # noqa: E402
from cpn_fast.models.labeller import Labeller  # noqa: E402
from tests.cpn_export.traced_once import fingerprint  # noqa: E402
from tests.mini_backbone import Mini  # noqa: E402


class Noted:
    """What a network of others may hold beside modules; its repr() is its place in memory."""

    def __init__(self, stride: int) -> None:
        self.strides = [stride]


def labeller(scales: tuple[float, ...] = (1.0,), power: float = 1.0, pairs: int = 0) -> Labeller:
    torch.manual_seed(0)
    refine = RefineOptions("raw", "scale", power)
    made = Labeller(CamNet(Mini(), 3, "pcm"), scales, flip=False, beta=0.3, refine=refine, pairs=pairs).eval()
    made.net.backbone.noted = Noted(1)  # type: ignore[assignment]
    return made


def nudged(change: Callable[[Labeller], object]) -> Labeller:
    made = labeller()
    with torch.no_grad():
        change(made)
    return made


def test_equal_labellers_are_equal_and_every_change_is_seen() -> None:
    first = fingerprint(labeller(), "maps")
    assert fingerprint(labeller(), "maps") == first
    others = [
        labeller(scales=(0.5,)),
        labeller(power=2.0),
        labeller(pairs=1),
        nudged(lambda made: next(made.net.parameters()).flatten()[:1].add_(1e-3)),
        nudged(lambda made: made.net.mean.add_(0.1)),
        nudged(lambda made: setattr(made.net.backbone.mid, "padding", (0, 0))),
        nudged(lambda made: made.net.backbone.add_module("last", nn.ReLU())),
        nudged(lambda made: setattr(made.net.backbone, "noted", Noted(2))),
    ]
    found = [fingerprint(other, "maps") for other in others] + [fingerprint(labeller(), "scores")]
    assert len({first, *found}) == 1 + len(found)
