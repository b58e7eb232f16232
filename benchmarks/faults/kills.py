"""SIGKILL at random moments of each command, then the same command again: is the result that of an unbroken run?"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from benchmarks.faults import forks
from benchmarks.faults.subjects import Found, Subject

LONGEST = 600.0


def compare(found: Found, unbroken: Found) -> dict[str, int]:
    """What is missing, other than it should be, there twice, and left behind."""
    return {
        "lost": len(unbroken.content.keys() - found.content.keys()),
        "different": sum(found.content[key] != unbroken.content[key]
                         for key in found.content.keys() & unbroken.content.keys()),
        "doubled": found.doubled,
        "left": found.left,
    }  # fmt: skip


def kill(subject: Subject, times: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Run unbroken, then `times` times kill it and run it again.

    Returns:
        `tried`, of which `killed` before their end; sums of `lost`, `different`, `doubled` and `left` over all; and
        `unclear`: what the second run said where its status was not 0.
    """
    draw = random.Random(f"{subject.name} {seed}")
    first = forks.scratch(folder, "unbroken")
    unbroken = forks.run(subject.at(first), limit=LONGEST)
    if unbroken.status != 0:
        raise RuntimeError(f"{subject.name} ended with status {unbroken.status}:\n{unbroken.said}")
    wanted = subject.found(first)
    total = {"tried": times, "killed": 0, "lost": 0, "different": 0, "doubled": 0, "left": 0}
    unclear: list[str] = []
    for _ in range(times):
        output = forks.scratch(folder, "killed")
        ended = forks.run(subject.at(output), limit=LONGEST, kill_after=draw.uniform(0, unbroken.seconds))
        total["killed"] += ended.killed
        again = forks.run(subject.at(output), limit=LONGEST)
        if again.status != 0:
            unclear.append(f"status {again.status}: {again.said[-2000:]}")
        for key, count in compare(subject.found(output), wanted).items():
            total[key] += count
        shutil.rmtree(output.parent)
    return {**total, "seconds": round(unbroken.seconds, 2), "unclear": unclear}
