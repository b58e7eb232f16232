"""A training reads the same batches from shards as from files: any order, any start, any number of workers."""

from __future__ import annotations

import io
import tarfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cpn_fast.cam.batches import BatchStream
from cpn_fast.config.training import AugmentOptions, DeviceOptions, LoopOptions, PatchOptions, TrainConfig
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Batch

COUNT = 11


def write_all(folder: Path) -> None:
    """The same eleven pictures as files with a CSV, in two tars and in two Parquet files of row groups of three."""
    rng = np.random.default_rng(0)
    contents = []
    for number in range(COUNT):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40 + number, 50 - number, 3), np.uint8)).save(data, "PNG")
        contents.append(data.getvalue())
    names = [f"p{number:02d}" for number in range(COUNT)]
    labels = ["ab"[number % 2] for number in range(COUNT)]
    for kind in ("files", "tars", "tables"):
        (folder / kind).mkdir()
    for name, data in zip(names, contents, strict=True):
        (folder / "files" / f"{name}.png").write_bytes(data)
    rows = [f"{name}.png,{label},train" for name, label in zip(names, labels, strict=True)]
    (folder / "files" / "labels.csv").write_text("\n".join(["image,labels,split", *rows]) + "\n")
    for part, span in enumerate((range(6), range(6, COUNT))):
        with tarfile.open(folder / "tars" / f"train-{part}.tar", "w") as tar:
            for number in span:
                for ending, data in (("png", contents[number]), ("cls", labels[number].encode())):
                    info = tarfile.TarInfo(f"{names[number]}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        images = [{"bytes": contents[number], "path": f"{names[number]}.png"} for number in span]
        table = pa.table({"image": images, "label": [labels[number] for number in span]})
        pq.write_table(table, folder / "tables" / f"train-{part}.parquet", row_group_size=3)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_from_shards_are_those_from_files_also_when_resumed(tmp_path: Path, workers: int) -> None:
    write_all(tmp_path)
    config = TrainConfig(
        data="x", output=tmp_path / "run", method="cpn", loop=LoopOptions(batch_size=4, seed=3),
        patch=PatchOptions(kind="grid"), augment=AugmentOptions(crop=32), device=DeviceOptions(workers=workers),
    )  # fmt: skip
    found: dict[str, list[Batch]] = {}
    for spec in ("folder:files", "wds:tars", "parquet:tables"):
        kind, _, name = spec.partition(":")
        source = open_source(f"{kind}:{tmp_path / name}")
        found[kind] = list(BatchStream(source, source.records("train"), config, 0, 6))
        resumed = list(BatchStream(source, source.records("train"), config, 4, 6))
        assert len(resumed) == 2 and all(map(same, resumed, found[kind][4:]))
    assert len({batch.ids for batch in found["folder"]}) == 6  # over two epochs and more, in other orders
    for kind in ("wds", "parquet"):
        assert all(map(same, found[kind], found["folder"]))
    other = replace(config, loop=replace(config.loop, seed=4))
    source = open_source(f"wds:{tmp_path}/tars")
    assert not all(map(same, BatchStream(source, source.records("train"), other, 0, 6), found["folder"]))
