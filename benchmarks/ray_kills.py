"""A node of a Ray cluster is killed in the middle of a job: `python -m benchmarks.ray_kills --times 10`.

Two nodes of one processor each on this machine; the second one gets SIGKILL, with all its processes, once a part of the
images is done, a larger one each time. What is lost or done twice goes to benchmarks/results/ray_kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.ray_fake import cluster_here, kill_node, mask_of, sleeping
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.files.jobs import run
from cpn_fast.files.mask_folder import MaskFolder

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ray_kills.json"
IMAGES, SECONDS = 240, 0.05


def entries(output: Path) -> list[dict[str, Any]]:
    """The lines that are written so far, a torn last one left out."""
    path = output / "manifest.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def one_kill(cluster: Any, output: Path, share: float) -> dict[str, Any]:
    """A job whose second node is killed after `share` of its images."""
    node = cluster.add_node(num_cpus=1)
    killed: list[int] = []
    at = 0

    def kill() -> None:
        nonlocal at
        while True:
            found = entries(output)
            if len(found) >= share * IMAGES and len({entry["by"] for entry in found}) == 2:
                break
            time.sleep(0.02)
        at = len(found)
        killed.extend(kill_node(node))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    started = time.monotonic()
    run(sleeping(output, IMAGES, seconds=SECONDS), engine=RayEngine())
    seconds = time.monotonic() - started
    killer.join()
    cluster.remove_node(node, allow_graceful=False)
    lines = Counter(entry["id"] for entry in entries(output) if entry["status"] == "ok")
    wrong = [n for n in range(IMAGES) if (MaskFolder.at(output).read(f"{n:05d}") != mask_of(n)).any()]
    by_killed = sum(entry["by"] in killed for entry in entries(output))
    return {
        "killed_after": at, "done_by_killed_node": by_killed, "lost": IMAGES - len(lines), "wrong": len(wrong),
        "doubled": sum(count - 1 for count in lines.values()), "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    times = parser.parse_args().times
    found = []
    with cluster_here() as cluster, tempfile.TemporaryDirectory() as folder:
        for number in range(times):
            found.append(one_kill(cluster, Path(folder) / str(number), (number + 1) / (times + 3)))
            print(json.dumps(found[-1]), flush=True)
    import ray  # cluster_here sets what it reads as it is imported

    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    about = {"python": platform.python_version(), "ray": ray.__version__, "cores": os.cpu_count(), "commit": commit}
    total = {"tried": len(found), "images_each": IMAGES}
    total |= {key: sum(each[key] for each in found) for key in ("lost", "doubled", "wrong")}
    RESULT.write_text(json.dumps({"machine": about, **total, "kills": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
