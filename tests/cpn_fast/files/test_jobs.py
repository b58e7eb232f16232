"""The resumable job by itself, with work that only writes numbers: what is skipped, recorded, resumed and refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, ImageJobs, bounded_map, error_entry, run
from cpn_fast.files.lock import locked
from cpn_fast.files.plan import read_plan


@dataclass(frozen=True, kw_only=True)
class Numbers(ImageJobs[int, int]):
    """Writes the square of each number to a file."""

    verb: ClassVar[str] = "square"
    participle: ClassVar[str] = "squared"

    bad: frozenset[int] = frozenset()
    calls: list[int] = field(default_factory=list)
    before: Callable[[int], None] = lambda number: None

    def id_of(self, item: int) -> str:
        return str(item)

    def path(self, item: int) -> Path:
        return self.output / f"{item}.txt"

    def is_done(self, item: int, entry: Mapping[str, Any]) -> bool:
        return self.path(item).is_file()

    def bytes_needed(self, todo: Sequence[int]) -> float:
        return 10 * len(todo)

    def work(self, item: int) -> Entry:
        self.calls.append(item)
        self.before(item)
        if item in self.bad:
            return error_entry(str(item), Path(f"{item}.jpg"), "is odd")
        self.path(item).write_text(str(item**2))
        return {"id": str(item), "status": "ok"}


@dataclass
class Told:
    """Keeps what is said."""

    lines: list[str] = field(default_factory=list)
    moved: int = 0

    def say(self, what: object) -> None:
        self.lines.append(str(what))

    @contextmanager
    def items(self, what: str, total: int) -> Iterator[Callable[..., None]]:
        self.lines.append(f"{what} {total}")

        def advance(count: int, state: str = "") -> None:
            self.moved += count

        yield advance


def numbers(output: Path, count: int = 5, **more: Any) -> Numbers:
    values = {"settings": {"power": 2}, "data": "numbers", "workers": 2} | more
    return Numbers(output=output, items=range(count), **values)


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def test_all_are_done_once_and_then_up_to_date(tmp_path: Path) -> None:
    told = Told()
    summary = run(numbers(tmp_path / "out"), told)
    assert (summary.written, summary.skipped, summary.failed) == (5, 0, 0)
    assert [line["id"] for line in lines(tmp_path / "out")] == list("01234")
    assert told.lines[0] == "5 images of numbers to square, 0 up to date" and told.moved == 5
    assert (tmp_path / "out/3.txt").read_text() == "9"
    again = numbers(tmp_path / "out")
    summary = run(again)
    assert (summary.written, summary.skipped, again.calls) == (0, 5, [])
    assert len(lines(tmp_path / "out")) == 5 and not list((tmp_path / "out").glob(".lock*"))


def test_what_is_gone_or_failed_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    summary = run(numbers(tmp_path, bad=frozenset({1, 3})))
    assert (summary.written, summary.failed) == (3, 2) and [entry["id"] for entry in summary.done] == list("024")
    assert "2 of 5 images could not be read" in caplog.text and "the first: is odd" in caplog.text
    (tmp_path / "4.txt").unlink()
    again = numbers(tmp_path)
    assert run(again).written == 3 and sorted(again.calls) == [1, 3, 4]


def test_none_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 2 images could be read; the first: is odd"):
        run(numbers(tmp_path, count=2, bad=frozenset({0, 1})))


def test_other_settings_are_refused_or_make_everything_anew(tmp_path: Path) -> None:
    run(numbers(tmp_path))
    with pytest.raises(DataError, match=r"was squared with other settings: power \(there: 2, now: 3\)"):
        run(numbers(tmp_path, settings={"power": 3}))
    assert run(numbers(tmp_path, settings={"power": 3}, overwrite=True)).written == 5


def test_an_error_of_work_ends_the_job_and_what_is_recorded_stays(tmp_path: Path) -> None:
    def full(number: int) -> None:
        if number == 3:
            raise DataError("the disk is full")

    with pytest.raises(DataError, match="the disk is full"):
        run(numbers(tmp_path, count=100, workers=1, before=full))
    assert [line["id"] for line in lines(tmp_path)] == ["0", "1", "2"]
    again = numbers(tmp_path, count=100)
    assert run(again).skipped == 3 and not {0, 1, 2} & set(again.calls)


def test_two_at_once_do_nothing_twice(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        begun.set()
        go.wait(10)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, numbers(tmp_path, before=wait))
        assert begun.wait(10)
        with pytest.raises(DataError, match=f"{tmp_path}: .*process .* is writing here"):
            run(numbers(tmp_path))
        go.set()
        assert first.result().written == 5
    assert len(lines(tmp_path)) == 5


def test_shards_work_side_by_side_but_not_beside_overwriting(tmp_path: Path) -> None:
    with locked(tmp_path, "2/2"):
        assert run(numbers(tmp_path, shard="1/2")).written == 5
        with pytest.raises(DataError, match="is writing here"):
            run(numbers(tmp_path, shard="1/2", overwrite=True))


def test_bounded_map_begins_no_more_than_its_limit() -> None:
    taken, running, most = 0, 0, 0
    lock = threading.Lock()

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001 * (number % 3))
        with lock:
            running -= 1
        return number

    with ThreadPoolExecutor(8) as pool:
        given = []
        for result in bounded_map(pool, work, items(), 5):
            given.append(result)
            assert taken - len(given) < 5
    assert given == list(range(40)) and 1 < most <= 5


def test_bounded_map_stops_at_an_error() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="two"):
        list(bounded_map(pool, work, range(1000), 4))
    assert len(begun) < 10


def test_a_large_job_takes_time_in_proportion(tmp_path: Path) -> None:
    """20,000 images that are all up to date: nothing is searched once per image."""
    for size in (2_000, 20_000):
        out = tmp_path / str(size)
        out.mkdir()
        text = "".join(f'{{"id": "{number}", "status": "ok"}}\n' for number in range(size))
        (out / "manifest.jsonl").write_text(text)
    spent = {}
    for size in (2_000, 20_000):
        jobs = Known(output=tmp_path / str(size), items=range(size), settings={}, data="n", workers=1)
        start = time.process_time()
        assert run(jobs).skipped == size
        spent[size] = time.process_time() - start
    assert spent[20_000] < 40 * spent[2_000] + 0.2  # a search per image would take 100 times as long


@dataclass(frozen=True, kw_only=True)
class Known(Numbers):
    """Everything is there."""

    def is_done(self, item: int, entry: Mapping[str, Any]) -> bool:
        return True


def test_the_job_needs_no_torch() -> None:
    code = "import sys, cpn_fast.files.jobs; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_jobs import Numbers, run
output, hold, part = Path({output!r}), Path({output!r} + ".hold"), {shard!r}
def wait(number):
    while number >= 4 and hold.exists():
        time.sleep(0.02)
items = list(range(12))
if part:
    index, count = map(int, part.split("/"))
    items = items[index - 1 :: count]
try:
    run(Numbers(output=output, items=items, settings={{}}, data="d", workers=2, shard=part, before=wait))
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def test_real_processes_on_one_folder_leave_one_line_an_image(tmp_path: Path) -> None:
    def start(output: Path, shard: str | None = None) -> subprocess.Popen[str]:
        code = PROCESS.format(folder=str(Path(__file__).parent), output=str(output), shard=shard)
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)

    def ids(output: Path) -> list[int]:
        return sorted(int(json.loads(line)["id"]) for line in (output / "manifest.jsonl").read_text().splitlines())

    whole, hold = tmp_path / "whole", tmp_path / "whole.hold"
    hold.touch()
    first = start(whole)
    while not (whole / "0.txt").is_file():
        time.sleep(0.02)
    second = start(whole)
    assert "is writing here" in second.communicate(timeout=120)[1] and second.returncode == 1
    hold.unlink()
    assert first.wait(timeout=120) == 0 and ids(whole) == list(range(12))
    parts = [start(tmp_path / "parts", f"{part}/2") for part in (1, 2)]
    assert [process.wait(timeout=120) for process in parts] == [0, 0]
    assert ids(tmp_path / "parts") == list(range(12))


class Heavy(Sequence[Any]):
    """Numbers of which each is made with ten kilobytes when it is asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._count:
            raise IndexError(place)
        return place, bytes(10_000)


@dataclass(frozen=True, kw_only=True)
class HeavyJobs(ImageJobs[Any, Any]):
    """Only says that it has done an item."""

    verb: ClassVar[str] = "square"
    participle: ClassVar[str] = "squared"

    def id_of(self, item: Any) -> str:
        return f"ü{item[0]}"

    def is_done(self, item: Any, entry: Mapping[str, Any]) -> bool:
        return item[0] % 2 == 0

    def bytes_needed(self, todo: Sequence[Any]) -> float:
        return 10 * len(todo)

    def work(self, item: Any) -> Entry:
        return {"id": self.id_of(item), "status": "ok"}


def test_no_more_items_are_held_than_are_being_done(tmp_path: Path) -> None:
    count = 2000
    jobs = HeavyJobs(output=tmp_path, items=Heavy(count), settings={}, data="numbers", workers=2)
    for expected in (count, count // 2):  # the second time odd ones are done again, by their places
        tracemalloc.start()
        try:
            assert run(jobs).written == expected
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2_000_000  # all of them would be 20 MB
    plan = read_plan(tmp_path)
    assert plan is not None and tuple(plan.ids) == tuple(f"ü{number}" for number in range(count)) and plan.command == ""
    assert json.loads((tmp_path / "plan.json").read_text()) == {"command": "", "ids": list(plan.ids)}
