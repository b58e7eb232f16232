"""What `--engine ray` costs beside the network: `python -m benchmarks.ray_throughput`.

A network that sleeps 50 ms over an image, in this process and on a Ray cluster of this machine with one and two
workers. The seconds until the workers are there are counted apart. Results go to
benchmarks/results/ray_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.ray_fake import cluster_here, sleeping
from cpn_fast.cluster.ray_crew import RayCrew
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.files.jobs import LOCAL, Engine

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ray_throughput.json"
SECONDS = 0.05


def measured(folder: Path, engine: Engine, workers: int, images: int) -> dict[str, float]:
    """Seconds until all workers are there, and of the images; overhead over what the sleeping alone would take."""
    started = time.monotonic()
    jobs = sleeping(folder, images, seconds=SECONDS)
    with engine.crew(jobs) as crew:
        if isinstance(crew, RayCrew):
            crew.gather(workers)
        began = time.monotonic()
        assert sum(entry["status"] == "ok" for entry in crew.entries(jobs.items)) == images
        seconds = time.monotonic() - began
    return {
        "start_seconds": round(began - started, 1), "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 1),
        "over_sleeping": round(seconds / (images * SECONDS / workers) - 1, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    found = {}
    with cluster_here(cpus=2, quick=False), tempfile.TemporaryDirectory() as folder:
        for name, engine, workers in (
            ("local", LOCAL, 1), ("ray, 1 worker", RayEngine(None, 1), 1), ("ray, 2 workers", RayEngine(None, 2), 2),
        ):  # fmt: skip
            found[name] = measured(Path(folder) / name, engine, workers, given.images)
            if engine is not LOCAL:
                local = found["local"]["seconds"] / workers
                found[name]["over_local"] = round(found[name]["seconds"] / local - 1, 4)
            print(name, json.dumps(found[name]), flush=True)
    import ray  # the engine sets what it reads as it is imported

    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    about = {"python": platform.python_version(), "ray": ray.__version__, "cores": os.cpu_count(), "commit": commit}
    settings = {"images": given.images, "network_seconds": SECONDS, "load_average": round(os.getloadavg()[0], 1)}
    given.output.write_text(json.dumps({"machine": about, **settings, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
