"""Options of `--engine ray` that need no cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.ray_fake import sleeping
from cpn_fast.cluster import ray_engine
from cpn_fast.cluster.options import EngineOptions
from cpn_fast.cluster.ray_crew import reason_of, share_of
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import LOCAL, run


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="--ray-address: an option of --engine ray"):
        EngineOptions(ray_address="auto").open_engine()
    with pytest.raises(DataError, match="--workers-per-node 0: expected at least 1"):
        EngineOptions(engine="ray", workers_per_node=0).open_engine()
    assert EngineOptions(engine="ray", ray_address="auto", workers_per_node=3).open_engine() == RayEngine("auto", 3)
    assert EngineOptions().open_engine() is LOCAL


def test_without_ray_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'cpn-fast\[ray\]'"):
        EngineOptions(engine="ray").open_engine()
    with pytest.raises(DataError, match=r"pip install 'cpn-fast\[ray\]'"):
        run(sleeping(tmp_path / "out", 2), engine=RayEngine())
    assert not (tmp_path / "out/SegmentationClass").exists()


def test_a_session_within_another_begins_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ray:
        begun = 0
        there = False

        def is_initialized(self) -> bool:
            return self.there

        def init(self, **options: object) -> None:
            self.begun, self.there = self.begun + 1, True

        def shutdown(self) -> None:
            self.there = False

    ray = Ray()
    monkeypatch.setattr(ray_engine, "installed_ray", lambda local: ray)
    with RayEngine().session() as outer, RayEngine().session() as inner:
        assert outer is inner is ray and ray.there
    assert ray.begun == 1 and not ray.there


@pytest.mark.parametrize(("cpus", "workers", "share"), [(16, 1, 16), (16, 3, 5), (2, 4, 0.5), (1, 3, 0.333)])
def test_workers_share_the_processors_of_a_machine(cpus: int, workers: int, share: float) -> None:
    assert share_of(cpus, workers) == share and workers * share <= cpus


def test_a_loss_is_told_in_a_line() -> None:
    text = "The actor died unexpectedly.\n\tpid: 1\nThe actor is dead because its node has died."
    assert reason_of(RuntimeError(text)) == "The actor is dead because its node has died."
    assert reason_of(RuntimeError("no\nroom")) == "no room"
    assert reason_of(RuntimeError("End of file. Some common causes include: (1) much")) == "End of file."
