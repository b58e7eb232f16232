"""The plan's arithmetic by hand, and the page that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale_plan import Plan, Rates, table
from benchmarks.tables import with_table


def test_hours_rates_and_prices_by_hand() -> None:
    rates = Rates(read_bytes=1e5, decode=0.01, store=1e-3, crf=0.36)
    plan = Plan(images=7.2e6, gpus=10, gpu_rate=200, cores=2, rates=rates)
    assert plan.parts() == pytest.approx({
        "network, GPUs": 1.0,  # 7.2e6 images at 2,000 a second
        "decoding, cores": 1.0,  # 7.2e4 s on 20 cores
        "dense CRF, cores": 36.0,
        "one driver that writes": 2.0,
    })  # fmt: skip
    assert plan.drivers == 2 and plan.read_rate == pytest.approx(2e8)
    assert plan.cost_per_million(3.6) == pytest.approx(5.0)  # 5,000 s at 0.001 a second


def test_the_page_holds_the_table(repository: Path) -> None:
    page = (repository / "docs" / "develop" / "scale.md").read_text(encoding="utf-8")
    assert with_table(page, table(), "plan") == page, "python -m benchmarks.scale_plan --page docs/develop/scale.md"
