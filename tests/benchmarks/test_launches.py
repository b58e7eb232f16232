"""Counts of kernel launches: cases by hand, and that the compiler fuses what surrounds PCM."""

from __future__ import annotations

import pytest
import torch

from benchmarks.launches import compiled_launches, eager_launches, surroundings
from cpn_fast.models.refinement import winner_maps


def test_views_and_fresh_memory_launch_nothing() -> None:
    x = torch.empty(2, 3, 4, device="meta")
    assert eager_launches(lambda: x.relu() + 1) == 2
    assert eager_launches(lambda: x.transpose(0, 1)[:, 1:].unsqueeze(0).detach()) == 0
    assert eager_launches(lambda: torch.empty_like(x)) == 0
    weight = torch.empty(3, device="meta", requires_grad=True)
    forward = eager_launches(lambda: (weight * 2).sum())
    assert eager_launches(lambda: {"loss": (weight * 2).sum()}) > forward == 2  # the backward pass is counted


@pytest.mark.slow
def test_the_compiler_fuses_what_surrounds_pcm() -> None:
    """Min-max, background, winner mask: two reductions over the positions, the rest pointwise."""
    assert compiled_launches(lambda x: x.relu() * 2 + 1, torch.zeros(8, 9)) == (1, 0)
    eager = eager_launches(lambda: winner_maps(*surroundings("meta")))
    inductor, others = compiled_launches(winner_maps, *surroundings("cpu"))
    assert others == 0 and eager > 20 and inductor <= eager // 4
