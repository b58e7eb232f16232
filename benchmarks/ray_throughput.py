"""What `--engine ray` costs beside the network: `python -m benchmarks.ray_throughput`.

A network that sleeps 50 ms over an image, in this process and on a Ray cluster that each run starts on this machine,
of one and two workers. The seconds of the start are counted apart. Results go to
benchmarks/results/ray_throughput.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ray_fake import sleeping
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.files.jobs import LOCAL, Engine, run
from cpn_fast.files.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ray_throughput.json"
IMAGES, SECONDS = 400, 0.05


class Clock:
    """When the first image could begin: the bar is there once the workers are."""

    began = 0.0

    def say(self, what: object) -> None:
        """Nothing."""

    @contextmanager
    def items(self, what, total):
        self.began = time.monotonic()
        yield lambda count, state="": None


def measured(folder: Path, engine: Engine, workers: int) -> dict[str, float]:
    """Seconds of the start and of the images; overhead over what the sleeping alone would take."""
    clock: Progress = Clock()
    started = time.monotonic()
    run(sleeping(folder, IMAGES, seconds=SECONDS), clock, engine)
    ended = time.monotonic()
    seconds = ended - clock.began
    return {
        "start_seconds": round(clock.began - started, 1), "seconds": round(seconds, 2),
        "images_per_second": round(IMAGES / seconds, 1),
        "over_sleeping": round(seconds / (IMAGES * SECONDS / workers) - 1, 4),
    }  # fmt: skip


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, engine, workers in (
            ("local", LOCAL, 1), ("ray, 1 worker", RayEngine(None, 1), 1), ("ray, 2 workers", RayEngine(None, 2), 2),
        ):  # fmt: skip
            found[name] = measured(Path(folder) / name, engine, workers)
            if engine is not LOCAL:
                local = found["local"]["seconds"] / workers
                found[name]["over_local"] = round(found[name]["seconds"] / local - 1, 4)
            print(name, json.dumps(found[name]), flush=True)
    import ray  # the engine sets what it reads as it is imported

    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    about = {"python": platform.python_version(), "ray": ray.__version__, "cores": os.cpu_count(), "commit": commit}
    settings = {"images": IMAGES, "network_seconds": SECONDS, "load_average": round(os.getloadavg()[0], 1)}
    RESULT.write_text(json.dumps({"machine": about, **settings, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
