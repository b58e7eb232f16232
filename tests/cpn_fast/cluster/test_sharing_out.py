"""How many images a worker of a cluster is given, by its pace and by what is left; without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.ray_fake import sleeping
from cpn_fast.cluster.ray_crew import CALLS, RayCrew, _Member
from cpn_fast.cluster.worker import Sent


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[RayCrew]:
    """Of ten workers that take 0.1 s for an image, and one that takes 3 s."""
    ray: Any = SimpleNamespace(put=lambda value: value, remote=lambda kind: kind)
    jobs = sleeping(tmp_path, 1000)
    with ThreadPoolExecutor(1) as pool:
        crew = RayCrew(ray, jobs, Sent(jobs, "", ""), pool, None)
        for number in range(11):
            calls = SimpleNamespace(work=SimpleNamespace(remote=lambda items: object()))
            crew._members.append(_Member(calls, "node", "host", seconds=3.0 if number == 10 else 0.1))
        yield crew


def test_a_call_takes_two_seconds_of_its_worker_and_less_towards_the_end(crew: RayCrew) -> None:
    fast, slow = crew._members[0], crew._members[10]
    assert crew._size(fast, 100_000) == 20 and crew._size(slow, 100_000) == 1
    together = 10 / 0.1 + 1 / 3.0  # images a second
    assert crew._size(fast, 200) == int(200 / together / (2 * CALLS) / 0.1) == 4
    assert crew._size(fast, 3) == 1


def test_no_worker_has_more_than_two_calls_and_a_new_one_is_tried_with_one_image(crew: RayCrew) -> None:
    fast = crew._members[0]
    fast.seconds = None
    assert crew._size(fast, 1000) == 1
    crew._call(fast, [0])
    assert crew._size(fast, 1000) == 0
    fast.seconds = 0.1
    assert crew._size(fast, 1000) > 0
    crew._call(fast, [1])
    assert crew._size(fast, 1000) == 0


def test_one_that_would_be_waited_for_gets_no_more(crew: RayCrew) -> None:
    """The others do 100 images a second: of 200 they are through in 2 s, of 400 in 4 s."""
    fast, slow = crew._members[0], crew._members[10]
    crew._call(fast, [0])
    assert crew._size(slow, 400) == 1 and crew._size(slow, 200) == 0 and crew._size(fast, 200) == 4


def test_what_nobody_else_does_is_given_to_whoever_is_there(crew: RayCrew) -> None:
    slow = crew._members[10]
    assert crew._size(slow, 1) == 1  # nobody has anything, so that nobody would bring the next chance


def test_batches_stay_whole(tmp_path: Path, crew: RayCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(crew._jobs), "group", property(lambda self: 8))
    assert crew._size(crew._members[0], 100_000) == 16 and crew._size(crew._members[10], 100_000) == 8
