"""`--engine ray` on a cluster of this machine: the same masks, broken images, killed workers and nodes, resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from PIL import Image

from benchmarks.ray_fake import kill_node, mask_of, sleeping
from cpn_export.label import LabelOnnxConfig, run_label_onnx
from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.cluster import ray_engine
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import JobSummary, run
from cpn_fast.files.shards.job import run_into_shards
from cpn_fast.inference.sink import mask_sink
from cpn_fast.refine.command import RefineConfig, run_refine
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.predict import PredictConfig, run_segment_predict
from tests.cpn_export.conftest import TOY_GRAPH, toy_info
from tests.cpn_fast.files.test_jobs import Told, numbers
from tests.cpn_fast.segment.test_predict import make_segment_run
from tests.cpn_fast.segment.voc_squares import make

pytestmark = pytest.mark.slow


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "SegmentationClass").glob("*")}


def without_process(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(({**entry, "by": None} for entry in entries), key=lambda entry: entry["id"])


def test_masks_and_manifest_are_those_of_this_process(cluster: Any, tmp_path: Path) -> None:
    told = Told()
    summary = run(sleeping(tmp_path / "ray", 60, bad=frozenset({7, 8})), told, RayEngine())
    run(sleeping(tmp_path / "local", 60, bad=frozenset({7, 8})))
    assert (summary.written, summary.skipped, summary.failed) == (58, 0, 2) and told.moved == 60
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert without_process(lines(tmp_path / "ray")) == without_process(lines(tmp_path / "local"))
    assert {line["by"] for line in lines(tmp_path / "ray") if "by" in line}.isdisjoint({os.getpid()})
    again = run(sleeping(tmp_path / "ray", 61, bad=frozenset({7})), Told(), RayEngine())
    assert (again.written, again.skipped, again.failed) == (2, 58, 1)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ray/SegmentationClass/00060.png")), mask_of(60))


def test_shards_hold_the_same_bytes(cluster: Any, tmp_path: Path) -> None:
    found = {}
    for name, engine in (("ray", {"engine": RayEngine()}), ("local", {})):
        output = tmp_path / name
        writer = mask_sink(output, "wds", 16, {"classes": ["a"]}, ())
        jobs = sleeping(output, 40, folder=writer, bad=frozenset({20}), settings=writer.about, plain=True)
        summary = run_into_shards(jobs, writer, **engine)
        assert (summary.written, summary.failed) == (39, 1)
        found[name] = {path.name: path.read_bytes() for path in output.glob("*.tar")}
    assert len(found["ray"]) == 3 and found["ray"] == found["local"]


def test_images_of_a_killed_worker_are_done_once_more(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Number 5 kills its process the first time, number 9 every time: the others that were with it are not lost."""
    deadly = {"deadly": frozenset({5}), "once": tmp_path / "once"}
    summary = run(sleeping(tmp_path / "once-out", 20, **deadly), engine=RayEngine())
    assert (summary.written, summary.failed) == (20, 0) and "images are done again" in caplog.text
    summary = run(sleeping(tmp_path / "twice", 20, deadly=frozenset({9})), engine=RayEngine())
    assert (summary.written, summary.failed) == (19, 1)
    assert sorted(line["id"] for line in lines(tmp_path / "twice")) == [f"{number:05d}" for number in range(20)]
    (failed,) = (line for line in lines(tmp_path / "twice") if line["status"] != "ok")
    assert failed["id"] == "00009" and "two workers ended over this image" in failed["error"]


def test_a_killed_node_loses_and_doubles_nothing(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    jobs = sleeping(tmp_path / "out", 150, seconds=0.05)
    killed: list[int] = []

    def kill() -> None:
        while len({line["by"] for line in _begun(tmp_path / "out")}) < 2:
            time.sleep(0.05)
        killed.extend(kill_node(node))

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(jobs, engine=RayEngine())
    killer.join()
    cluster.remove_node(node, allow_graceful=False)
    by = {line["by"] for line in lines(tmp_path / "out")}
    assert (summary.written, summary.failed) == (150, 0) and by & set(killed) and by - set(killed)
    assert sorted(line["id"] for line in lines(tmp_path / "out")) == [f"{number:05d}" for number in range(150)]
    found = files(tmp_path / "out")
    assert len(found) == 150 and not list((tmp_path / "out").rglob(".tmp-*"))


def _begun(output: Path) -> list[dict[str, Any]]:
    return [line for line in lines(output) if "by" in line] if (output / "manifest.jsonl").exists() else []


def test_errors_that_end_a_job_come_as_they_are(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^the disk of the worker is full$"):
        run(sleeping(tmp_path / "out", 20, full=True), engine=RayEngine())
    with pytest.raises(DataError, match="cannot square images; use --engine local"):
        run(numbers(tmp_path / "numbers"), engine=RayEngine())


def test_a_worker_of_another_version_is_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "own_version", lambda: "0.0.1")
    with pytest.raises(DataError, match=r"cpn-fast .* is installed there, 0\.0\.1 where the command was given"):
        run(sleeping(tmp_path / "out", 2), engine=RayEngine())


DRIVER = """
import sys
from pathlib import Path
from benchmarks.ray_fake import sleeping
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.files.jobs import run

run(sleeping(Path(sys.argv[1]), 100, seconds=0.05), engine=RayEngine(sys.argv[2]))
"""


def test_a_killed_command_resumes(cluster: Any, tmp_path: Path, repository: Path) -> None:
    """The one that is killed has another process; its actors end with it, and so does its lock."""
    words = [sys.executable, "-c", DRIVER, str(tmp_path / "out"), cluster.address]
    process = subprocess.Popen(words, cwd=repository)
    while len(_begun(tmp_path / "out")) < 10:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = _begun(tmp_path / "out")
    summary = run(sleeping(tmp_path / "out", 100), engine=RayEngine())
    assert 10 <= summary.skipped == len(before) < 100 and summary.written == 100 - summary.skipped
    assert sorted(line["id"] for line in lines(tmp_path / "out")) == [f"{number:05d}" for number in range(100)]
    assert len(files(tmp_path / "out")) == 100


def same_results(folder: Path, do: Callable[..., JobSummary], entries: int) -> None:
    """`do(output, engine=...)` gives the same files and lines on the cluster and here."""
    for engine in ("local", "ray"):
        summary = do(output=folder / engine, engine=engine)
        assert summary.written == entries
    by_engine = {}
    for engine in ("local", "ray"):
        root = folder / engine
        found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.[pn][np][gz]")}
        assert len([name for name in found if name.startswith("SegmentationClass")]) == entries
        by_engine[engine] = found, sorted(lines(root), key=lambda line: line["id"]), read_settings(root)
    assert by_engine["local"] == by_engine["ray"]


def read_settings(root: Path) -> Any:
    return json.loads((root / "settings.json").read_text())


def test_label_and_refine_give_the_same_masks(
    cluster: Any, make_run: Callable[..., RunFolder], small_demo: Path, tmp_path: Path
) -> None:
    run_path = make_run(tmp_path / "run").path
    labels = {"split": "val", "scales": (0.5, 1.0), "beta": 0.3, "sheet": 0, "soft_maps": True}

    def label(**to: Any) -> JobSummary:
        return run_label(LabelConfig(run_path, f"demo:{small_demo}", device="cpu", **labels, **to))

    def refine(**to: Any) -> JobSummary:
        return run_refine(RefineConfig(tmp_path / "labels/local", crf=True, device="cpu", **to))

    same_results(tmp_path / "labels", label, 6)
    same_results(tmp_path / "refined", refine, 6)


def test_predict_gives_the_same_masks(cluster: Any, tmp_path: Path) -> None:
    data = make(tmp_path / "voc")
    run_path = make_segment_run(tmp_path / "run", data)

    def predict(**to: Any) -> JobSummary:
        return run_segment_predict(
            PredictConfig(run_path, f"voc:{data}", scales=(0.5,), flip=False, device="cpu", **to)
        )

    same_results(tmp_path / "masks", predict, len(open_source(f"voc:{data}").records("val")))


def test_an_exported_model_gives_the_same_masks(cluster: Any, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(TOY_GRAPH)
    onnx.helper.set_model_props(model, toy_info().to_metadata())
    onnx.save(model, tmp_path / "toy.onnx")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")

    def label(**to: Any) -> JobSummary:
        return run_label_onnx(
            LabelOnnxConfig(tmp_path / "toy.onnx", (tmp_path / "photos",), batch_size=1, sheet=0, **to)
        )

    same_results(tmp_path / "masks", label, 3)
