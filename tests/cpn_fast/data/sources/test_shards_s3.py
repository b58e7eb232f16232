"""Shards in an S3-compatible server on the loopback address: `moto` and `s3fs`, where they are installed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError

server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "CPN_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_tars_in_a_bucket(bucket: s3fs.S3FileSystem) -> None:
    pictures = [np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8) for seed in range(4)]
    for shard in range(2):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for number in (2 * shard, 2 * shard + 1):
                png = io.BytesIO()
                Image.fromarray(pictures[number]).save(png, "PNG")
                for name, content in ((f"{number}.png", png.getvalue()), (f"{number}.cls", b"ab"[number % 2 :][:1])):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        bucket.pipe(f"bucket/d/train-{shard:04}.tar", data.getvalue())
    for pattern in ("train-{0000..0001}.tar", "*.tar", ""):
        source = open_source(f"wds:s3://bucket/d/{pattern}")
        records = source.records("train")
        assert [record.labels for record in records] == [(0,), (1,), (0,), (1,)]
        for picture, record in zip(pictures, records, strict=True):
            np.testing.assert_array_equal(source.read(record).image, picture)
    with pytest.raises(DataError, match=r"s3://bucket/d/none.tar: no such shard"):
        open_source("wds:s3://bucket/d/none.tar")
