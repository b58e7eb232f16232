"""`--engine ray` over shards in an S3-compatible server: workers read them by their address."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.data.sources.open import open_source
from cpn_fast.runs.folder import RunFolder
from tests.cpn_fast.cluster.test_ray_engine import same_results
from tests.cpn_fast.data.sources.test_shards_s3 import bucket  # noqa: F401

pytestmark = pytest.mark.slow


def test_images_of_a_bucket_give_the_same_masks(
    bucket: Any,  # noqa: F811
    make_run: Callable[..., RunFolder],
    small_demo: Path,
    tmp_path: Path,
) -> None:
    source = open_source(f"demo:{small_demo}")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for record in source.records("val"):
            image = Path(str(record.image_path))
            names = "\n".join(source.classes[label] for label in record.labels or ()).encode()
            for name, content in ((f"{record.id}{image.suffix}", image.read_bytes()), (f"{record.id}.txt", names)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    bucket.pipe("bucket/demo/val-0000.tar", data.getvalue())
    run = make_run(tmp_path / "run").path
    options: dict[str, Any] = {"split": "val", "scales": (0.5,), "beta": 0.3, "sheet": 0, "device": "cpu"}

    def label(**to: Any) -> Any:
        return run_label(LabelConfig(run, "wds:s3://bucket/demo/val-0000.tar", **options, **to))

    same_results(tmp_path / "masks", label, len(source.records("val")))
