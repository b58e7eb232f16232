"""Many workers with stragglers and losses, through `--engine ray` itself: `python -m benchmarks.ray_simulation`.

The network is fake: it sleeps as long as one would take, lognormal around a mean, ten times longer in two of the
workers. One in a hundred images cannot be done, and some kill the worker that has them, once. All workers are processes
of this machine, on a Ray cluster of one node of which each takes a fraction of a processor. Where the time went is told
from what each process says of its images: when it began and ended, on the clock that all have in common.

Results go to benchmarks/results/ray_simulation.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ray_fake import Sleeping, cluster_here
from cpn_fast.cluster.ray_crew import RayCrew
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.files.jobs import Entry
from cpn_fast.files.mask_folder import MaskFolder

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ray_simulation.json"
SPREAD = 0.5
"""Standard deviation of the logarithm of an image's seconds."""


@dataclass(frozen=True, kw_only=True)
class Drawn(Sleeping):
    """A network whose images take their time, and longer in some processes.

    Attributes:
        slow: how many processes are stragglers.
        slower: how many times longer they take.
        places: folder in which each process finds out by a file of its own whether it is one.
    """

    slow: int
    slower: float
    places: Path

    def sleep_of(self, item: int) -> float:
        """Seconds of an image in a process that is no straggler; `seconds` on average."""
        return random.Random(item).lognormvariate(math.log(self.seconds) - SPREAD**2 / 2, SPREAD)

    def ready(self, todo: Sequence[int]) -> Iterator[int]:
        factor = self.slower if self._is_slow() else 1.0
        for item in todo:
            started = time.monotonic()
            time.sleep(factor * self.sleep_of(item))
            _SPENT[item] = (started, time.monotonic())
            yield item

    def work(self, item: int) -> Entry:
        began, ended = _SPENT.pop(item)
        return {**super().work(item), "began": began, "ended": ended, "by": os.getpid()}

    def _is_slow(self) -> bool:
        global _SLOW
        if _SLOW is None:
            _SLOW = any(_claimed(self.places / str(number)) for number in range(self.slow))
        return _SLOW


_SPENT: dict[int, tuple[float, float]] = {}
_SLOW: bool | None = None


def _claimed(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def simulated(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One job; what became of its images, and of its workers' time."""
    draw = random.Random(given.seed)
    bad = frozenset(draw.sample(range(given.images), given.images // 100))
    deadly = frozenset(draw.sample(sorted(set(range(given.images)) - bad), given.deaths))
    (folder / "places").mkdir()
    (folder / "once").mkdir()
    jobs = Drawn(
        output=folder / "out", items=range(given.images), settings={}, data="numbers", workers=2,
        folder=MaskFolder.at(folder / "out"), seconds=given.seconds, bad=bad, deadly=deadly, once=folder / "once",
        slow=given.slow, slower=given.slower, places=folder / "places",
    )  # fmt: skip
    with RayEngine(None, given.workers).crew(jobs) as crew:
        assert isinstance(crew, RayCrew)
        started = time.monotonic()
        crew.gather(given.workers)
        begun = time.monotonic()
        entries = list(crew.entries(jobs.items))
        ended = time.monotonic()
        alive = {entry["by"] for entry in entries if Path(f"/proc/{entry['by']}").exists()}
    return {"start_seconds": round(begun - started, 1), **told(entries, jobs, begun, ended, given.workers, alive)}


def told(
    entries: Sequence[Entry], jobs: Drawn, begun: float, ended: float, workers: int, alive: Set[int]
) -> dict[str, Any]:
    """What is to be known of a job: nothing lost, nothing double, how busy its workers were, how long its tail was.

    Args:
        entries: of all images, with `began`, `ended` and `by` of the process that did each.
        jobs: what was done.
        begun: when the images were given out.
        ended: when the last one was there.
        workers: how many there were.
        alive: processes that were still there.
    """
    count = len(jobs.items)
    done = Counter(entry["id"] for entry in entries)
    wrong = [item for item in jobs.items if (item in jobs.bad) == jobs.folder.has(jobs.id_of(item))]
    last: dict[int, float] = {}
    for entry in entries:
        last[entry["by"]] = max(entry["ended"], last.get(entry["by"], 0.0))
    first_idle = min(last[process] for process in alive)
    busy = sum(entry["ended"] - entry["began"] for entry in entries)
    slept = sum(jobs.sleep_of(item) for item in jobs.items)
    pace = workers - jobs.slow + jobs.slow / jobs.slower
    seconds = ended - begun
    return {
        "lost": count - len(done), "doubled": sum(done.values()) - len(done), "wrong": len(wrong),
        "failed": sum(entry["status"] != "ok" for entry in entries), "failed_expected": len(jobs.bad),
        "seconds": round(seconds, 2), "least_seconds": round(slept / pace, 2),
        "of_the_least": round(slept / pace / seconds, 3), "utilisation": round(busy / (workers * seconds), 3),
        "tail_seconds": round(ended - first_idle, 2), "processes": len(last), "ended": len(last) - len(alive),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--seconds", type=float, default=0.5, help="of an image, on average")
    parser.add_argument("--slow", type=int, default=2, help="stragglers")
    parser.add_argument("--slower", type=float, default=10.0, help="how many times longer they take")
    parser.add_argument("--deaths", type=int, default=6, help="images that kill their worker, once each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    with cluster_here(cpus=2, quick=False) as cluster, tempfile.TemporaryDirectory() as folder:
        assert cluster
        found = simulated(given, Path(folder))
    import ray  # cluster_here sets what it reads as it is imported

    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    about = {"python": platform.python_version(), "ray": ray.__version__, "cores": os.cpu_count(), "commit": commit,
             "load_average": round(os.getloadavg()[0], 1)}  # fmt: skip
    settings = {key: value for key, value in vars(given).items() if key != "output"}
    text = json.dumps({"machine": about, "settings": settings, **found}, indent=2)
    given.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
