"""Time and peak memory of a labelling over N images: `python benchmarks/memory_over_images.py 10000 100000 1000000`.

Names of steps behind the numbers have these measured alone; the others of the record stay.

Tars of images of 8 x 8 pixels with labels are written, looked through, labelled into shards by a network that does
nothing (so that planning, reading, encoding and writing are all that is measured), and labelled again, when all is up
to date; Parquet files of the same are looked through and read; a folder of files with a CSV is looked through, labelled
by a work that only says it is done, so that no million files of masks are written, its manifest read, and its labelled
images taken for another job, as `cpn refine` takes them. The masks in shards are scored with `cpn evaluate`, which
imports torch. Each step is a process of its own, whose largest resident memory the system tells. Results go to
benchmarks/results/memory_over_images.json, and the picture and table of docs/guide/shards.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Record, Source
from cpn_fast.files.jobs import Entry, ImageJobs, run
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.plan import write_plan
from cpn_fast.files.shards.job import run_into_shards
from cpn_fast.files.shards.masks import ShardWriter
from cpn_fast.inference.sink import mask_sink
from cpn_fast.refine.labelled_folder import LabelledFolder

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "memory_over_images.json"
PICTURE = ROOT / "docs" / "images" / "memory_over_images.svg"
IN_SHARD = 10_000
YTICKS = (40, 60, 100, 150, 250)
STEPS = {
    "nothing": "imports alone",
    "index": "shards: looked through, once",
    "label": "shards: read, and masks written into shards",
    "again": "shards: the same again, all up to date",
    "torch": "imports of `cpn evaluate` alone",
    "score": "shards: masks scored",
    "parquet": "Parquet: looked through, and every image read",
    "folder": "files: CSV read, images listed, records made",
    "work": "files: the same, and labelled without writing masks",
    "manifest": "files: manifest looked up",
    "refine": "files: labelled images of a folder taken for another job, without writing masks",
}


@dataclass(frozen=True, kw_only=True)
class Said(ImageJobs[Record, Record]):
    """Says that every image is done, and writes nothing beside the manifest."""

    verb: ClassVar[str] = "label"
    participle: ClassVar[str] = "labelled"

    def id_of(self, item: Record) -> str:
        return item.id

    def is_done(self, item: Record, entry: Mapping[str, Any]) -> bool:
        return True

    def bytes_needed(self, todo: Sequence[Record]) -> float:
        return 100.0 * len(todo)

    def work(self, item: Record) -> Entry:
        return {"id": item.id, "status": "ok", "image": str(item.image_path), "labels": ["a"], "confidence": 0.5}


@dataclass(frozen=True, kw_only=True)
class SaidAgain(ImageJobs[Entry, Entry]):
    """The same of the lines of a labelling."""

    verb: ClassVar[str] = "refine"
    participle: ClassVar[str] = "refined"

    def id_of(self, item: Entry) -> str:
        return item["id"]

    def is_done(self, item: Entry, entry: Mapping[str, Any]) -> bool:
        return True

    def bytes_needed(self, todo: Sequence[Entry]) -> float:
        return 100.0 * len(todo)

    def work(self, item: Entry) -> Entry:
        return {"id": item["id"], "status": "ok", "image": item["image"], "labels": ["a"], "confidence": 0.5}


@dataclass(frozen=True, kw_only=True)
class Nothing(Said):
    """Reads every image and gives it an empty mask."""

    source: Source
    folder: ShardWriter

    def work(self, item: Record) -> Entry:
        mask = np.zeros(self.source.read(item).image.shape[:2], np.uint8)
        self.folder.write(item.id, mask)
        return {**self.folder.describe(item.id, item.image_path, mask), "labels": ["a"], "confidence": 0.5}


def tiny(number: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(data, "PNG")
    return data.getvalue()


def empty_mask() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(data, "PNG")
    return data.getvalue()


def write_shards(folder: Path, count: int, truth: bool = False) -> None:
    folder.mkdir()
    pictures = [tiny(number) for number in range(256)]
    more = [("mask.png", empty_mask())] if truth else []
    for shard in range(-(-count // IN_SHARD)):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for number in range(shard * IN_SHARD, min(count, (shard + 1) * IN_SHARD)):
                for kind, data in [("png", pictures[number % 256]), ("cls", b"a"), *more]:
                    info = tarfile.TarInfo(f"{number:08d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_parquet(folder: Path, count: int) -> None:
    """As Hugging Face's `datasets` writes it: bytes and a label, groups of 100 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    pictures = [tiny(number) for number in range(256)]
    for shard in range(-(-count // IN_SHARD)):
        numbers = range(shard * IN_SHARD, min(count, (shard + 1) * IN_SHARD))
        images = [{"bytes": pictures[number % 256], "path": f"{number:08d}.png"} for number in numbers]
        table = pa.table({"image": images, "label": ["a"] * len(numbers)})
        pq.write_table(table, folder / f"train-{shard:06d}.parquet", row_group_size=100)


def write_files(folder: Path, count: int) -> None:
    """A folder of 1000 images each in sub-folders, a CSV, and the manifest of their masks.

    The images are further names of a few files: a million files of their own would be 4 GB of nothing.
    """
    names = [f"images/{number // 1000:04d}/{number:08d}.png" for number in range(count)]
    for number, name in enumerate(names):
        path = folder / name
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        if number < 256:
            path.write_bytes(tiny(number))
        else:
            path.hardlink_to(folder / names[number % 256])
    write_plan(folder, (name[7:-4] for name in names), "")
    (folder / "labelmap.txt").write_text("background:0,0,0::\na:128,0,0::\n")
    (folder / "labels.csv").write_text("image,labels\n" + "".join(f"{name},a\n" for name in names))
    with (folder / "manifest.jsonl").open("w") as file:
        for name in names:
            entry = {"id": name[7:-4], "status": "ok", "image": name, "mask": f"SegmentationClass/{name[7:]}",
                     "width": 8, "height": 8, "labels": ["a"], "labels_from": "image", "foreground": 0.5,
                     "confidence": 0.5}  # fmt: skip
            file.write(json.dumps(entry) + "\n")


def step(name: str, folder: Path) -> None:
    """One step, in a process of its own."""
    if name in ("index", "label", "again"):
        source = open_source(f"wds:{folder}/shards")
        records = source.records("train")
        if name == "index":
            return
        settings = {"classes": ["a"]}
        writer = mask_sink(folder / "masks", "wds", 1000, settings, records)
        assert isinstance(writer, ShardWriter)
        summary = run_into_shards(
            Nothing(output=folder / "masks", items=records, settings=writer.about, data="", workers=2,
                    source=source, folder=writer), writer)  # fmt: skip
        assert (summary.written if name == "label" else summary.skipped) == len(records)
    elif name == "parquet":
        source = open_source(f"parquet:{folder}/parquet")
        assert all(source.read(record).image.shape == (8, 8, 3) for record in source.records("train"))
    elif name == "folder":
        assert open_source(f"folder:{folder}/files").records("all")
    elif name == "work":
        records = open_source(f"folder:{folder}/files").records("all")
        jobs = Said(output=folder / "said", items=records, settings={}, data="", workers=2)
        assert run(jobs).written == len(records)
    elif name in ("torch", "score"):
        from cpn_fast.scoring.command import run_evaluate
        from cpn_fast.scoring.options import EvaluateConfig

        if name == "score":
            run_evaluate(EvaluateConfig(folder / "masks", f"wds:{folder}/truth", split="train"))
    elif name == "refine":
        labelled = LabelledFolder.open(folder / "files")
        again = SaidAgain(
            output=folder / "again", items=labelled.entries, settings={}, data="", workers=2, planned=labelled.planned
        )
        assert run(again).written == len(labelled.entries)
    elif name == "manifest":
        assert Manifest(folder / "files" / "manifest.jsonl").index().find("0000/00000001")


def peak_mib() -> float:
    """The largest resident memory of this program; that of `getrusage` would count the parent's before `exec`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measured(name: str, folder: Path) -> dict[str, float]:
    """Processor seconds (waits for the disk and for others are not in them) and peak MiB of a step."""
    command = [sys.executable, str(Path(__file__).resolve()), "--step", name, str(folder)]
    environment = {**os.environ, "CPN_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return {"cpu_seconds": round(float(seconds), 2), "peak_mib": round(float(peak), 1)}


def draw(counts: dict[str, dict[str, dict[str, float]]]) -> None:
    """Peak memory over the number of images."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 6.5), layout="constrained")
    for number, (name, text) in enumerate(STEPS.items()):
        points = [(int(count), steps[name]["peak_mib"]) for count, steps in counts.items() if name in steps]
        if points:
            style = "--" if text.startswith("files") else "-"
            axes.plot(*zip(*sorted(points), strict=True), marker="os^v"[number % 4], linestyle=style, label=text)
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel="peak memory, MiB")
    axes.set_yticks(YTICKS, [str(mib) for mib in YTICKS], minor=False)
    axes.set_yticks([], minor=True)
    figure.legend(loc="outside lower center", fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(PICTURE, metadata={"Date": None})


def write(name: str, folder: Path, count: int) -> None:
    """What a step reads, unless it is there."""
    kinds = {"index": "shards", "label": "shards", "again": "shards", "parquet": "parquet", "score": "truth"}
    kinds |= {"nothing": "", "torch": ""}
    kind = kinds.get(name, "files")
    if kind and not (folder / kind).exists():
        writers = {"shards": write_shards, "parquet": write_parquet, "files": write_files}
        writers.get(kind, partial(write_shards, truth=True))(folder / kind, count)


def commit() -> str:
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main(counts: Sequence[int], steps: Sequence[str]) -> None:
    record = json.loads(RESULT.read_text()) if RESULT.is_file() else {"images": {}}
    found = record["images"]
    for count in counts:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as temporary:
            folder = Path(temporary)
            for name in steps:
                write(name, folder, count)
                found.setdefault(str(count), {})[name] = measured(name, folder) | {"commit": commit()}
                print(count, name, json.dumps(found[str(count)][name]), flush=True)
        record["machine"] = record.get("machine", {}) | {"python": platform.python_version(), "cores": os.cpu_count()}
        RESULT.write_text(json.dumps(record, indent=2) + "\n")
    draw(found)


def count_or_step(text: str) -> int | str:
    if text.isdecimal():
        return int(text)
    if text in STEPS:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor one of {', '.join(STEPS)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        begin = time.process_time()
        step(sys.argv[2], Path(sys.argv[3]))
        print(time.process_time() - begin, peak_mib())
    else:
        parser = argparse.ArgumentParser(description="Time and peak memory of a labelling over N images.")
        parser.add_argument("given", nargs="+", type=count_or_step, metavar="N|STEP", help="numbers, then steps")
        given = parser.parse_args().given
        names = [each for each in given if isinstance(each, str)]
        main([each for each in given if isinstance(each, int)], names or list(STEPS))
