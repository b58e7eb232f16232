"""A benchmark is a candidate beside its peer in the same run, with their outputs compared first.

Peer and candidate alternate, so that other load on the machine meets both. The figure is the ratio of their medians.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cpn_kernels.cp_triplet import normalise_images

RESULTS = Path(__file__).parent / "results"
EARLIER = Path(__file__).parents[1] / ".benchmarks" / "slower_last_time.json"
ROUNDS = 5
TOLERATED = 0.8
"""A ratio below this share of the committed one, in two runs in a row, is a failure."""

measured: dict[str, dict[str, Any]] = {}


def results_file() -> Path:
    """The committed figures of this kind of machine and torch version."""
    device = "gpu" if torch.cuda.is_available() else "cpu"
    return RESULTS / f"{device}-torch{torch.__version__.partition('+')[0]}.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write the figures to benchmarks/results/")


@pytest.fixture
def against(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., float]:
    """`against(candidate=..., peer=..., agree=..., items=n)`: check, time both in turn, and return the ratio."""

    def compare(
        candidate: Callable[[], Any], peer: Callable[[], Any], agree: Callable[[], None], items: int = 1
    ) -> float:
        agree()  # raises where the outputs differ: no figure then
        peer_seconds: list[float] = []

        def time_peer() -> None:
            started = time.perf_counter()
            peer()
            peer_seconds.append(time.perf_counter() - started)

        benchmark.pedantic(candidate, setup=time_peer, rounds=ROUNDS, warmup_rounds=1)
        ours, theirs = benchmark.stats.stats.median, statistics.median(peer_seconds[1:])
        name = request.node.name
        measured[name] = {
            "ratio": round(theirs / ours, 3),
            "candidate_ms": round(1e3 * ours, 2),
            "peer_ms": round(1e3 * theirs, 2),
            "candidate_items_per_second": round(items / ours, 3),
            "peer_items_per_second": round(items / theirs, 3),
        }
        benchmark.extra_info.update(measured[name])
        _check_against_committed(name, theirs / ours)
        return theirs / ours

    return compare


@pytest.fixture
def record_pair(request: pytest.FixtureRequest) -> Callable[..., float]:
    """`record_pair(candidate=..., peer=...)`: measured items_per_second and peak_mib of both; returns the ratio."""

    def record(candidate: dict[str, float], peer: dict[str, float]) -> float:
        name = request.node.name
        ratio = candidate["items_per_second"] / peer["items_per_second"]
        measured[name] = {"ratio": round(ratio, 3)}
        for side, values in (("candidate", candidate), ("peer", peer)):
            measured[name][f"{side}_ms"] = round(1e3 / values["items_per_second"], 2)
            measured[name][f"{side}_items_per_second"] = round(values["items_per_second"], 3)
            measured[name][f"{side}_peak_mib"] = round(values["peak_mib"])
        _check_against_committed(name, ratio)
        return ratio

    return record


@pytest.fixture
def calibrate() -> Callable[[torch.nn.Module, torch.Tensor], None]:
    """`calibrate(net, images)`: batch norm statistics of these images, so that untrained maps are neither 0 nor huge.

    Without it the activations of an untrained network die out layer by layer, and any two outputs would agree.
    """

    def measure(net: torch.nn.Module, images: torch.Tensor) -> None:
        norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        net.eval()
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
            norm.training = True
        with torch.no_grad():
            net(normalise_images(images))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.eval()

    return measure


def _check_against_committed(name: str, ratio: float) -> None:
    committed = results_file()
    if not committed.is_file():
        return
    known = json.loads(committed.read_text(encoding="utf-8"))["benchmarks"].get(name)
    earlier = json.loads(EARLIER.read_text(encoding="utf-8")) if EARLIER.is_file() else []
    slower = known is not None and ratio < TOLERATED * known["ratio"]
    EARLIER.parent.mkdir(exist_ok=True)
    EARLIER.write_text(json.dumps(sorted({*earlier} - {name} | ({name} if slower else set()))), encoding="utf-8")
    if slower and name in earlier:
        pytest.fail(f"{name}: {ratio:.2f} times its peer in two runs in a row; committed {known['ratio']:.2f}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not measured or not session.config.getoption("--record"):
        return
    earlier = json.loads(results_file().read_text(encoding="utf-8")) if results_file().is_file() else {}
    same = (earlier.get("machine"), earlier.get("threads")) == (_machine(), torch.get_num_threads())
    content = {
        "machine": _machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        # Those of an earlier, partial run on the same machine stay.
        "benchmarks": dict(sorted(((earlier["benchmarks"] if same else {}) | measured).items())),
    }
    RESULTS.mkdir(exist_ok=True)
    results_file().write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not measured:
        return
    terminalreporter.section(f"candidate against peer, {_machine()}, {torch.get_num_threads()} torch threads")
    for name, values in sorted(measured.items()):
        terminalreporter.write_line(
            f"{name}: {values['ratio']:.2f} times as fast "
            f"({values['candidate_ms']:.1f} ms against {values['peer_ms']:.1f} ms; "
            f"{values['candidate_items_per_second']:.2f} against {values['peer_items_per_second']:.2f} items/s)"
            + (
                f", peak {values['candidate_peak_mib']:.0f} against {values['peer_peak_mib']:.0f} MiB"
                if "peer_peak_mib" in values
                else ""
            )
        )


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"
