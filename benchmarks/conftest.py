"""A benchmark is a candidate beside its peer in the same run, with their outputs compared first.

Peer and candidate alternate, so that other load on the machine meets both. The figure is the ratio of their medians.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measuring import ROUNDS, Call, extra_peak_mib, seconds
from cpn_fast.device import tune_allocator
from cpn_fast.reproduce.machine import machine

RESULTS = Path(__file__).parent / "results"
EARLIER = Path(__file__).parents[1] / ".benchmarks" / "slower_last_time.json"
TOLERATED = 0.8
"""A ratio below this share of the committed one, in two runs in a row, is a failure."""

measured: dict[str, dict[str, dict[str, Any]]] = {"cpu": {}, "cuda": {}}
"""What this run measured: device, benchmark, figures."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write the figures to benchmarks/results/, one by one")
    parser.addoption("--quick", action="store_true", help="one round, compared with no committed figure: does it run?")
    parser.addoption("--results", type=Path, default=RESULTS, help="folder to which --record writes")


def pytest_configure() -> None:
    """Both sides under the allocator's settings of `cpn train` and `cpn label`.

    Without them a call may or may not fault in all its pages anew, by what ran before it: a factor of three.
    """
    tune_allocator()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where torch sees none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs torch with a CUDA device"))


def results_file(device: str, folder: Path = RESULTS) -> Path:
    """The figures of this kind of machine and torch version."""
    return folder / f"{'gpu' if device == 'cuda' else 'cpu'}-torch{torch.__version__.partition('+')[0]}.json"


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where a benchmark computes: marked `gpu` on CUDA; one that follows the machine says so in its module."""
    follows = getattr(request.module, "FOLLOWS_THE_MACHINE", False) and torch.cuda.is_available()
    return "cuda" if follows or request.node.get_closest_marker("gpu") else "cpu"


@pytest.fixture
def keep(request: pytest.FixtureRequest, device: str) -> Callable[..., None]:
    """`keep(name=value, ...)`: put figures into this benchmark's record, and the record on disk if asked to."""

    def update(**figures: Any) -> None:
        entry = measured[device].setdefault(request.node.name, {})
        entry |= {name: _rounded(value) for name, value in figures.items() if value is not None}
        if request.config.getoption("--record"):
            _write(device, request.config.getoption("--results"))

    return update


def _rounded(value: Any) -> Any:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


@pytest.fixture
def against(keep: Callable[..., None], request: pytest.FixtureRequest, device: str) -> Callable[..., float]:
    """`against(candidate=..., peer=..., agree=..., items=n)`: check, measure both, and return the ratio of times.

    `calls` in a row count as one measurement, for what is too short to be timed alone.
    """

    def compare(
        candidate: Callable[[], Any],
        peer: Callable[[], Any],
        agree: Callable[[], None],
        items: int = 1,
        calls: int = 1,
    ) -> float:
        agree()  # raises where the outputs differ: no figure then
        peaks = [extra_peak_mib(form, device) for form in (candidate, peer)]
        timed = _with_plugin if request.config.pluginmanager.hasplugin("benchmark") else _without_plugin
        ours, theirs = timed(request, candidate, peer, device, calls)
        keep(
            ratio=theirs / ours,
            candidate_ms=1e3 * ours,
            peer_ms=1e3 * theirs,
            candidate_items_per_second=items / ours,
            peer_items_per_second=items / theirs,
            candidate_extra_peak_mib=peaks[0],
            peer_extra_peak_mib=peaks[1],
        )
        _check_against_committed(request, device, theirs / ours)
        return theirs / ours

    return compare


def _rounds(request: pytest.FixtureRequest) -> int:
    return 1 if request.config.getoption("--quick") else ROUNDS


def _with_plugin(
    request: pytest.FixtureRequest, candidate: Call, peer: Call, device: str, calls: int
) -> tuple[float, float]:
    """Median seconds of both; pytest-benchmark times the candidate, so that its tables and options work."""
    benchmark = request.getfixturevalue("benchmark")
    if benchmark.disabled:  # under xdist and --benchmark-disable it would call once and measure nothing
        benchmark(lambda: None)
        return _without_plugin(request, candidate, peer, device, calls)
    peer_seconds: list[float] = []
    benchmark.pedantic(
        lambda: seconds(candidate, device, calls),
        setup=lambda: peer_seconds.append(seconds(peer, device, calls)),
        rounds=_rounds(request),
        warmup_rounds=1,
    )
    return benchmark.stats.stats.median / calls, statistics.median(peer_seconds[1:])


def _without_plugin(
    request: pytest.FixtureRequest, candidate: Call, peer: Call, device: str, calls: int
) -> tuple[float, float]:
    """The same where pytest-benchmark is not installed: a machine with a GPU may have little else."""
    pairs = [(seconds(peer, device, calls), seconds(candidate, device, calls)) for _ in range(_rounds(request) + 1)][1:]
    return statistics.median(ours for _, ours in pairs), statistics.median(theirs for theirs, _ in pairs)


@pytest.fixture
def record_pair(keep: Callable[..., None], request: pytest.FixtureRequest, device: str) -> Callable[..., float]:
    """`record_pair(candidate=..., peer=...)`: measured items_per_second and peak_mib of both; returns the ratio."""

    def record(candidate: dict[str, float], peer: dict[str, float]) -> float:
        ratio = candidate["items_per_second"] / peer["items_per_second"]
        figures: dict[str, float] = {"ratio": ratio}
        for side, values in (("candidate", candidate), ("peer", peer)):
            figures[f"{side}_ms"] = 1e3 / values["items_per_second"]
            figures[f"{side}_items_per_second"] = values["items_per_second"]
            figures[f"{side}_peak_mib"] = values["peak_mib"]
        keep(**figures)
        _check_against_committed(request, device, ratio)
        return ratio

    return record


def _check_against_committed(request: pytest.FixtureRequest, device: str, ratio: float) -> None:
    committed, name = results_file(device), request.node.name
    if request.config.getoption("--quick") or not committed.is_file():
        return
    known = json.loads(committed.read_text(encoding="utf-8"))["benchmarks"].get(name)
    earlier = json.loads(EARLIER.read_text(encoding="utf-8")) if EARLIER.is_file() else []
    slower = known is not None and "ratio" in known and ratio < TOLERATED * known["ratio"]
    EARLIER.parent.mkdir(exist_ok=True)
    EARLIER.write_text(json.dumps(sorted({*earlier} - {name} | ({name} if slower else set()))), encoding="utf-8")
    if slower and name in earlier:
        pytest.fail(f"{name}: {ratio:.2f} times its peer in two runs in a row; committed {known['ratio']:.2f}")


def _write(device: str, folder: Path) -> None:
    """All figures so far; those of an earlier, partial run on the same machine stay."""
    path = results_file(device, folder)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = (earlier.get("machine"), earlier.get("threads")) == (machine(device), torch.get_num_threads())
    content = {
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "benchmarks": dict(sorted(((earlier["benchmarks"] if same else {}) | measured[device]).items())),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for device, found in measured.items():
        if not found:
            continue
        terminalreporter.section(f"candidate against peer, {machine(device)}, {torch.get_num_threads()} torch threads")
        for name, values in sorted(found.items()):
            terminalreporter.write_line(f"{name}: {_line(values)}")


def _line(values: dict[str, Any]) -> str:
    parts = []
    if "ratio" in values:
        parts.append(f"{values['ratio']:.2f} times as fast")
    if "candidate_ms" in values:
        parts.append(f"{values['candidate_ms']:.4g} ms against {values['peer_ms']:.4g} ms")
    for kind, text in (("extra_peak_mib", "extra peak"), ("peak_mib", "peak")):
        if f"candidate_{kind}" in values:
            parts.append(f"{text} {values[f'candidate_{kind}']:.0f} against {values[f'peer_{kind}']:.0f} MiB")
    usual = ("ratio", "_ms", "_items_per_second", "_peak_mib")
    parts += [f"{key} {value}" for key, value in values.items() if not key.endswith((*usual, "rows"))]
    return ", ".join(parts)
