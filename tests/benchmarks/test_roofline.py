"""Counts of the roofline against tensors of the operators themselves, cases by hand, and the page that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline
from benchmarks.roofline import H100, H200, Work
from benchmarks.tables import with_table
from cpn_kernels import cp_triplet, dense_crf, patch_crop, pixel_correlation, random_walk
from cpn_kernels.ops.augmented_crop import augmented_crop, pack
from cpn_kernels.ops.jittered_crop import Place
from cpn_kernels.ops.pixel_correlation import reference


def size(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_bytes_are_those_of_the_operators_tensors() -> None:
    """Small shapes, so that what comes in and out can be made and measured."""
    images, keys = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    patches = torch.zeros(2, 8, 8, dtype=torch.int32)
    for item, dtype in ((2, torch.bfloat16), (4, torch.float32)):
        work = roofline.cp_triplet(2, 8, item)
        assert work.read == size(images, patches, keys)
        assert work.written == size(*cp_triplet(images, patches, keys, 0.5, dtype=dtype))
    maps, rows = torch.zeros(2 * 25, dtype=torch.int16), torch.ones(2, 12, dtype=torch.int64)
    work = roofline.patch_crop(2, 5)
    assert (work.read, work.written) == (size(maps, rows), size(patch_crop(maps, rows, 5)))
    image = torch.zeros(6, 9, 3, dtype=torch.uint8)
    packed = [
        torch.from_numpy(part)
        for part in pack(image.numpy(), Place((8, 11), False, (5, 5), (1, 2), (0, 0), (5, 5)), ())
    ]
    work = roofline.augmented_crop(1, (6, 9), (8, 11), 5)
    rows = packed[2][None]  # four more numbers each tell the kernels where things begin
    assert work.read == size(*packed) + 4 * 8
    assert work.written == size(augmented_crop(*packed[:2], rows, packed[3][None], 5, (0, 0, 0)))
    affinity, maps = torch.ones(1, 34, 5, 6), torch.zeros(1, 3, 5, 6)
    work = roofline.random_walk(3, 5, 6, 2)
    assert (work.read, work.written) == (size(affinity, maps), size(random_walk(affinity, maps, 2)))
    work = roofline.superpixels(2, 8)
    assert (work.read, work.written) == (size(images), size(patches))  # labels are int32 too
    probabilities = torch.full((1, 3, 8, 8), 1 / 3)
    work = roofline.dense_crf(8, 8, 3, 1)
    tables = 2 * (3 + 6) * 64 * 8  # an index and a weight for each corner, to splat and to slice
    assert work.read == size(probabilities) + tables
    assert work.written == size(dense_crf(images[:1], probabilities, 1))
    embedding = torch.zeros(2, 16, 4, 4)
    work = roofline.pair_affinity(2, 16, 4)
    assert (work.read, work.written) == (size(embedding), size(torch.zeros(2, 34, 4, 4)))
    cam = torch.zeros(3 * 2, 5, 7, 7)
    assert roofline.cp_loss_forward(2, 5, 7, 7).read == 2 * size(cam)  # CAM and RCAM, every class present
    work = roofline.cp_loss_backward(2, 1, 7, 7, classes=5)
    assert (work.read, work.written) == (2 * size(cam) // 5, 2 * size(cam))


def test_operations_of_the_pixel_correlation() -> None:
    """torch's own counter on the reference: what the forward pass multiplies."""
    embedding, maps = torch.rand(2, 16, 50), torch.rand(2, 3, 50)
    with FlopCounterMode(display=False) as counter:
        found = reference.pixel_correlation(embedding, maps)
    work = roofline.correlation_forward(2, 16, 3, 50)
    assert work.tensor == counter.get_total_flops()
    half = embedding.bfloat16()
    assert work.read == size(half, maps) and work.written == size(found) + 4 * 2 * 50  # and the totals
    assert found.shape == pixel_correlation(half, maps).shape
    back = roofline.correlation_backward(2, 16, 3, 50)
    assert back.tensor == 2 * work.tensor  # affinities and gradients, slopes from both sides
    assert back.read == size(half, maps, found, found) + 4 * 2 * 50 and back.written == size(embedding)


def test_floor_and_estimate_by_hand() -> None:
    # 16 x 448 x 448 pixels of 3 + 4 + 18 bytes at 4.8 TB/s; keys and shares are 192 bytes
    triplet = roofline.cp_triplet(16, 448, 2)
    assert triplet.moved == 3_211_264 * 25 + 16 * 12
    seconds, bound = triplet.floor(H200)
    assert bound == "memory" and seconds == pytest.approx(16.73e-6, rel=1e-3)
    assert triplet.estimate(H200) == pytest.approx(16.73e-6 / 0.8 + 2 * 3e-6, rel=1e-3)
    # 2 * 12 * 3136 ** 2 * (192 + 21) = 50.27 GFLOP at 989 TFLOP/s
    seconds, bound = roofline.correlation_forward(12, 192, 21, 3136).floor(H100)
    assert bound == "tensor" and seconds == pytest.approx(50.83e-6, rel=1e-3)
    # 588 programs that read 3136 rows of 192 + 2 * 32 numbers of two bytes
    assert roofline.correlation_backward(12, 192, 21, 3136).cache == 12 * 49 * 3136 * 256 * 2
    made = Work("x", "", read=3.35e6, written=0, integer=16.7e6, more_integer=16.7e6, between=3.35e6, launches=0)
    assert made.floor(H100) == (1e-6, "memory") and made.estimate(H100) == pytest.approx(4e-6)


def test_measurements_of_a_gpu_stand_beside_the_counts(tmp_path: Path) -> None:
    assert all(row.endswith("| - |") for row in roofline.table(tmp_path)[2:])
    figures = {
        "test_triplet_kernel[bf16]": {"device_us": 21.04},
        "test_correlation_kernel_rate[3136]": {"both_device_ms": 0.4},
    }
    record = {"machine": "NVIDIA H200", "benchmarks": figures}
    (tmp_path / "gpu-torch2.13.0.json").write_text(json.dumps(record))
    rows = roofline.table(tmp_path)[2:]
    assert rows[0].endswith("| 21 us, NVIDIA H200 |") and rows[1].endswith("| - |")
    backward = next(row for row in rows if "`pixel_correlation`, backward" in row)
    assert backward.endswith("| 0.4 ms (both passes), NVIDIA H200 |")


def test_every_measured_figure_is_one_that_a_benchmark_keeps(repository: Path) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (repository / "benchmarks").glob("test_*.py"))
    sources += (repository / "benchmarks" / "conftest.py").read_text(encoding="utf-8")
    for work in roofline.works():
        if work.measured is not None:
            benchmark, figure, _ = work.measured
            assert f"def {benchmark.partition('[')[0]}(" in sources
            assert f"{figure}=" in sources or figure.split("_", 1)[1] in sources


def test_the_page_shows_the_table_as_it_is_made(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs" / "develop" / "roofline.md").read_text(encoding="utf-8")
    assert text == with_table(text, roofline.table(), "roofline")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- roofline: begin -->\nold\n<!-- roofline: end -->\nb\n")
    roofline.main(["--page", str(page)])
    assert (
        page.read_text().splitlines()[0] == "a" and "old" not in page.read_text() and "`cp_triplet`" in page.read_text()
    )
    with pytest.raises(ValueError, match="lacks the lines"):
        with_table("nothing", [], "roofline")
