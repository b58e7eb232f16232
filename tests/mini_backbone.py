"""A backbone that is quick to compile."""

from __future__ import annotations

from torch import Tensor, nn

from cpn_fast.models.backbones import Backbone


class Mini(Backbone):
    """Three convolutions with dropout."""

    channels, strides, frozen = (8, 8, 16), (4, 4, 4), True

    def __init__(self) -> None:
        super().__init__()
        self.mid = nn.Conv2d(3, 8, 3, 4, 1)
        self.high = nn.Conv2d(8, 8, 3, 1, 1)
        self.final = nn.Conv2d(8, 16, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mid = self.mid(x).relu()
        high = self.high(nn.functional.dropout2d(mid, 0.3, self.training)).relu()
        return mid, high, self.final(high).relu()
