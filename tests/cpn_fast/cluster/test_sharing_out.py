"""How many images a worker of a cluster is given, by its pace and by what is left; without Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.ray_fake import sleeping
from cpn_fast.cluster.ray_crew import CALLS, LOOK_EVERY, RayCrew, _Member
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


def test_the_fastest_of_those_who_are_there_redoes_what_was_lost(crew: RayCrew) -> None:
    for member, seconds in zip(crew._members, (0.4, 0.3, 0.1, 0.2, None, 0.05), strict=False):
        member.seconds = seconds
    for member in crew._members[6:]:
        member.seconds = 5.0
    crew._members[5].host = ""  # begins only now
    assert crew._who_redoes(deque()) is None
    lost = deque([7])
    third = crew._members[2]
    assert crew._who_redoes(lost) is third
    crew._members[3].seconds = 0.01
    assert crew._who_redoes(lost) is third  # once chosen it stays: it keeps itself free for this
    assert crew._who_redoes(deque()) is None
    assert crew._who_redoes(lost) is crew._members[3]  # a later loss is looked at anew


def test_where_the_fastest_is_lost_the_next_fastest_redoes(crew: RayCrew) -> None:
    for number, member in enumerate(crew._members):
        member.seconds = 1.0 + number
    first, second = crew._members[:2]
    lost = deque([1, 2])
    assert crew._who_redoes(lost) is first
    first.lost = True
    crew._members.remove(first)
    assert crew._who_redoes(lost) is second


def test_of_equally_fast_ones_the_first_redoes_and_of_unknown_ones_none(crew: RayCrew) -> None:
    for member in crew._members:
        member.seconds = 0.5
    assert crew._who_redoes(deque([1])) is crew._members[0]
    crew._who_redoes(deque())
    for member in crew._members:
        member.seconds = None
    assert crew._who_redoes(deque([1])) is None


class ActorLost(Exception):
    """As Ray's."""


class FakeRay:
    """Workers without Ray, on a clock that goes from one answer to the next.

    Args:
        paces: seconds of each worker for an image.
        dies: number of a worker -> how many calls it answers before it ends.
    """

    exceptions = SimpleNamespace(RayTaskError=type("TaskError", (Exception,), {}), RayError=ActorLost)

    def __init__(self, paces: Sequence[float], dies: dict[int, int]) -> None:
        self.paces, self.dies = paces, dies
        self.now = 0.0
        self.free = [0.0] * len(paces)
        self.answers: dict[object, tuple[float, int, list[int]]] = {}
        self.calls: list[tuple[int, list[int]]] = []

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: Any) -> Any:
        return kind

    def nodes(self) -> list[Any]:
        return []

    def kill(self, actor: Any) -> None:
        pass

    def actor(self, number: int) -> Any:
        def work(items: Sequence[int]) -> object:
            ref = object()
            self.free[number] = max(self.free[number], self.now) + self.paces[number] * len(items)
            self.answers[ref] = (self.free[number], number, list(items))
            self.calls.append((number, list(items)))
            return ref

        return SimpleNamespace(work=SimpleNamespace(remote=work))

    def wait(self, refs: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        first = min(refs, key=lambda ref: self.answers[ref][0])
        self.now = self.answers[first][0]
        return [first], []

    def get(self, ref: object) -> Any:
        _, number, items = self.answers.pop(ref)
        if number in self.dies:
            if not self.dies[number]:
                raise ActorLost("The actor is dead")
            self.dies[number] -= 1
        return [({"id": f"{item:05d}", "status": "ok"}, None) for item in items], self.paces[number] * len(items)


def crew_of(tmp_path: Path, ray: FakeRay) -> tuple[RayCrew, ThreadPoolExecutor]:
    jobs, pool = sleeping(tmp_path, 100), ThreadPoolExecutor(1)
    crew = RayCrew(ray, jobs, Sent(jobs, "", ""), pool, None)  # type: ignore[arg-type]
    crew._members += [_Member(ray.actor(number), "node", f"host{number}") for number in range(len(ray.paces))]
    return crew, pool


def test_images_of_the_fastest_that_ends_are_redone_one_by_one_by_the_next_fastest(tmp_path: Path) -> None:
    ray = FakeRay([0.5, 0.1, 0.2], dies={1: 1})  # the second answers its first image, and ends over what it gets next
    crew, pool = crew_of(tmp_path, ray)
    with pool:
        done = Counter(entry["id"] for entry in crew.entries(range(100)))
    assert done == Counter({f"{number:05d}": 1 for number in range(100)})
    given = Counter(item for _, items in ray.calls for item in items)
    lost = {item for number, items in ray.calls if number == 1 for item in items[:]} - {ray.calls[1][1][0]}
    assert len(lost) > 1 and {item for item, count in given.items() if count == 2} == lost
    redone = [(number, items) for number, items in ray.calls if number != 1 and lost & set(items)]
    assert all(number == 2 and len(items) == 1 for number, items in redone) and len(redone) == len(lost)


def test_where_the_one_that_redoes_ends_too_its_image_is_given_up_and_a_third_does_the_others(tmp_path: Path) -> None:
    ray = FakeRay([0.5, 0.1, 0.2], dies={1: 1})
    crew, pool = crew_of(tmp_path, ray)
    plain = crew._call

    def ending(member: _Member, items: Sequence[Any], last: bool = False) -> None:
        if last and member is crew._members[-1] and len(crew._members) == 2:  # the next fastest, over its first one
            ray.dies[2] = 0
        plain(member, items, last)

    crew._call = ending  # type: ignore[method-assign]
    with pool:
        entries = {entry["id"]: entry for entry in crew.entries(range(100))}
    failed = [entry for entry in entries.values() if entry["status"] != "ok"]
    assert len(entries) == 100 and len(failed) == 1
    assert "two workers ended over this image, the last on host2" in failed[0]["error"]
    assert ray.calls[-1][0] == 0


def machine(name: str, cpus: float, gpus: float = 0.0, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("per_node", "expected"),
    [
        (None, [("cpu", 4.0, 0.0)] + 4 * [("gpu", 2.0, 1.0)]),  # one, or one for each GPU
        (8, 8 * [("cpu", 0.5, 0.0)] + 8 * [("gpu", 1.0, 0.5)]),  # two share each of the 4 GPUs
        (3, 3 * [("cpu", 1.0, 0.0)] + 3 * [("gpu", 2.0, 1.0)]),
    ],
)
def test_what_the_workers_of_a_machine_take_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_node: int | None, expected: list[tuple[str, float, float]]
) -> None:
    """By what Ray says of the machines: no GPU is needed to share one out."""
    ray = FakeRay([], {})
    crew, _ = crew_of(tmp_path, ray)
    hired: list[tuple[str, float, float]] = []

    def hire(node: str, cpus: float, gpus: float) -> None:
        hired.append((node, cpus, gpus))
        crew._members.append(_Member(object(), node))

    monkeypatch.setattr(crew, "_hire", hire)
    monkeypatch.setattr(crew, "_per_node", per_node)
    monkeypatch.setattr(ray, "nodes", lambda: [machine("cpu", 4.0), machine("gone", 4.0, alive=False)])
    crew._recruit()
    monkeypatch.setattr(ray, "nodes", lambda: [machine("cpu", 4.0), machine("gpu", 8.0, 4.0)])  # one joins later
    crew._recruit()  # too early to look again
    assert all(node == "cpu" for node, _, _ in hired)
    crew._looked -= LOOK_EVERY
    crew._recruit()
    assert hired == expected
