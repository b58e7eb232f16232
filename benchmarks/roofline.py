"""What each operator has to move and to compute, and how long a GPU takes for that at least.

python -m benchmarks.roofline [--page docs/develop/roofline.md]

prints the table, or writes it into the page. Everything is counted from the shapes of a training (or of an image to be
labelled); nothing here was measured, but for the last column where benchmarks/results/ holds a GPU's record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, line, show

SHARES = {"memory": 0.8, "cache": 0.8, "tensor": 0.5, "vector": 0.5, "integer": 0.5}
"""Of a resource's peak, what an estimate counts on."""

LAUNCH = 3e-6
"""Seconds from one kernel's end to the next one's beginning, as an estimate counts them."""


@dataclass(frozen=True)
class Gpu:
    """Peaks of a GPU, each a second.

    Attributes:
        name: as people say it.
        memory: bytes to and from memory.
        cache: bytes from the L2 cache.
        tensor: bfloat16 operations of the tensor cores, a multiply-add counting as two.
        vector: float32 operations, likewise.
        integer: 32-bit integer instructions.
    """

    name: str
    memory: float
    cache: float = 5.5e12
    tensor: float = 989e12
    vector: float = 67e12
    integer: float = 16.7e12


H100, H200 = Gpu("H100", 3.35e12), Gpu("H200", 4.8e12)
"""The SXM forms by NVIDIA's data sheets; integers at 64 a clock in each of 132 multiprocessors of 1.98 GHz. No sheet
says what the cache gives: it is what others have measured of an H100."""


@dataclass(frozen=True)
class Work:
    """What one call of an operator has to do, and what its present form does beside.

    Attributes:
        name: of the operator and its pass.
        shape: in words.
        read: bytes of the inputs.
        written: bytes of the outputs.
        tensor: operations of matrix products.
        vector: other float32 operations.
        integer: integer instructions.
        more_vector: those that the present form does beyond these, for want of memory or of another way.
        more_integer: likewise.
        between: bytes that its passes write to memory and read again.
        cache: bytes that its programs read again from the L2 cache.
        launches: kernels, one after another.
        measured: benchmark, figure and milliseconds of one unit of it; None = no benchmark times it on a GPU.
    """

    name: str
    shape: str
    read: float
    written: float
    tensor: float = 0.0
    vector: float = 0.0
    integer: float = 0.0
    more_vector: float = 0.0
    more_integer: float = 0.0
    between: float = 0.0
    cache: float = 0.0
    launches: int = 1
    measured: tuple[str, str, float] | None = None

    @property
    def moved(self) -> float:
        """Bytes that any form moves: every input read once, every output written once."""
        return self.read + self.written

    def floor(self, gpu: Gpu) -> tuple[float, str]:
        """Seconds below which no form can be, and the resource that says so."""
        needed = {"memory": self.moved, "tensor": self.tensor, "vector": self.vector, "integer": self.integer}
        return max((amount / getattr(gpu, name), name) for name, amount in needed.items())

    def estimate(self, gpu: Gpu) -> float:
        """Seconds that the present form is expected to take; a guess to be measured against."""
        needed = {
            "memory": self.moved + self.between, "cache": self.cache, "tensor": self.tensor,
            "vector": self.vector + self.more_vector, "integer": self.integer + self.more_integer,
        }  # fmt: skip
        return max(amount / (SHARES[name] * getattr(gpu, name)) for name, amount in needed.items()) + (
            self.launches * LAUNCH
        )


def cp_triplet(batch: int, side: int, item: int) -> Work:
    """Images of 3 bytes and patches of 4 in, nine planes of `item` bytes out; 40 instructions of Philox a pixel."""
    pixels = batch * side**2
    return Work(
        "`cp_triplet`", f"{batch} x {side} x {side}, {8 * item} bits", read=7 * pixels + 8 * batch,
        written=9 * item * pixels + 4 * batch, vector=12 * pixels, integer=40 * pixels, launches=2,
        measured=(f"test_triplet_kernel[{'bf16' if item == 2 else 'fp32'}]", "device_us", 1e-3),
    )  # fmt: skip


def patch_crop(batch: int, side: int) -> Work:
    """Labels of 2 bytes in, of 4 out; some ten instructions a pixel, for rows and columns are found once a tile."""
    pixels = batch * side**2
    return Work(
        "`patch_crop`", f"{batch} x {side} x {side}", read=2 * pixels + 96 * batch, written=4 * pixels,
        integer=10 * pixels, measured=("test_patches_from_device_memory_against_the_host", "candidate_ms", 1.0),
    )  # fmt: skip


def augmented_crop(batch: int, image: tuple[int, int], scaled: tuple[int, int], side: int, taps: int = 4) -> Work:
    """Images of 3 bytes in, crops of 3 bytes out; the whole resized image is made, for its grey counts.

    A pixel takes an integer multiply-add for each tap and colour in both directions; the colours' four steps take some
    50 integer and 70 float operations, most of them for the hue. The image resized across, and what the crop shows
    before its contrast, are written and read again.
    """
    (height, width), (tall, broad) = image, scaled
    narrow, pixels = batch * height * broad, batch * tall * broad
    return Work(
        "`augmented_crop`", f"{batch} x {height} x {width} to {side} x {side}",
        read=3 * batch * height * width + batch * (4 * (1 + taps) * (tall + broad) + 21 * 8 + 16),
        written=3 * batch * side**2, vector=70 * pixels, integer=3 * taps * (narrow + pixels) + 50 * pixels,
        between=2 * 3 * (narrow + batch * side**2), cache=3 * taps * (narrow + pixels), launches=3,
        measured=("test_crops_on_the_gpu_against_one_thread", "device_ms", 1.0),
    )  # fmt: skip


HISTOGRAMS = 4 * 60
"""Instructions for each error, of the four histograms that find the k-th largest: a warp ballots the eight digits of 32
errors, and each lane counts those of its eight bins."""


def cp_loss_forward(batch: int, present: int, grid: int, side: int) -> Work:
    """CAM and RCAM of three views, of which the maps of absent classes are not read.

    Six maps are evaluated at least; the present form does so for their ranges, for L_tcp, and four times for L_cpcr (of
    two terms of three maps), and puts each error into four histograms.
    """
    held = 6 * batch * present * grid**2
    places = batch * present * side**2
    each = 6 + (8 if side > grid else 0)
    return Work(
        "`cp_loss`, forward", _loss_shape(batch, present, grid, side), read=4 * held, written=8,
        vector=6 * each * places, more_vector=30 * each * places,
        more_integer=2 * HISTOGRAMS * batch * (present + 1) * side**2, launches=13,
    )  # fmt: skip


def cp_loss_backward(batch: int, present: int, grid: int, side: int, classes: int) -> Work:
    """Reads the same maps; writes a gradient of every class, zeros first, and where it upsamples corners of cells."""
    held = 6 * batch * grid**2
    upsampled = side > grid
    evaluated = 6 * (20 + (8 if upsampled else 0)) * batch * present * side**2
    size = f"{grid}-to-{side}" if upsampled else grid
    corners = 5 * batch * present * 4 * (grid - 1) ** 2 if upsampled else 0
    return Work(
        "`cp_loss`, backward", _loss_shape(batch, present, grid, side), read=4 * held * present,
        written=4 * held * classes, vector=evaluated, more_vector=evaluated,
        between=4 * (held * present + 2 * corners), launches=7 if upsampled else 6,
        measured=(f"test_loss_kernel[eager-{size}-image]", "candidate_device_ms", 1.0),
    )  # fmt: skip


def _loss_shape(batch: int, present: int, grid: int, side: int) -> str:
    return f"{batch} images, {present} of 20 classes, {grid} x {grid}" + (f" to {side} x {side}" if side > grid else "")


FORWARD_ROWS, BACKWARD_ROWS = 128, 64
"""Rows of a program of `pixel_correlation` on Hopper in bf16: each program reads all of the other side."""


def correlation_forward(batch: int, embedding: int, channels: int, pixels: int) -> Work:
    """2 B N^2 (E + C); embeddings of 2 bytes, maps of 4; packed rows of bf16 between."""
    padded = _power_of_two(channels)
    packed = 2 * batch * pixels * (embedding + padded)
    return Work(
        "`pixel_correlation`, forward", _correlation_shape(batch, embedding, channels, pixels),
        read=batch * pixels * (2 * embedding + 4 * channels), written=4 * batch * pixels * (channels + 1),
        tensor=2 * batch * pixels**2 * (embedding + channels), vector=2 * batch * pixels**2, between=2 * packed,
        cache=ceil(pixels / FORWARD_ROWS) * packed, launches=3,
        measured=("test_correlation_kernel_rate[3136]", "forward_device_ms", 1.0),
    )  # fmt: skip


def correlation_backward(batch: int, embedding: int, channels: int, pixels: int) -> Work:
    """2 B N^2 (2 E + 2 C): affinities anew, their slopes from either side, and the gradient."""
    padded = _power_of_two(channels)
    packed = 2 * batch * pixels * (embedding + 2 * padded)
    return Work(
        "`pixel_correlation`, backward", _correlation_shape(batch, embedding, channels, pixels),
        read=batch * pixels * (2 * embedding + 4 * (3 * channels + 1)), written=4 * batch * pixels * embedding,
        tensor=4 * batch * pixels**2 * (embedding + channels), vector=4 * batch * pixels**2, between=2 * packed,
        cache=ceil(pixels / BACKWARD_ROWS) * packed, launches=4,
        measured=("test_correlation_kernel_rate[3136]", "both_device_ms", 1.0),
    )  # fmt: skip


def _power_of_two(channels: int) -> int:
    return max(16, 1 << (channels - 1).bit_length())


def _correlation_shape(batch: int, embedding: int, channels: int, pixels: int) -> str:
    return f"{batch} x {pixels} pixels, {embedding} and {channels} channels"


PAIRS = 34
"""Of a pixel and the half disc before it."""


def pair_affinity(batch: int, channels: int, side: int) -> Work:
    """exp(-mean |e_j - e_i|) of 34 pairs; today plain torch, whose every pair writes and reads the embeddings twice."""
    held = 4 * batch * channels * side**2
    return Work(
        "`pair_affinity`", f"{batch} x {channels} channels, {side} x {side}", read=held,
        written=4 * PAIRS * batch * side**2, vector=3 * PAIRS * batch * channels * side**2,
        between=(6 * PAIRS - 1) * held, launches=6 * PAIRS + 1,
    )  # fmt: skip


def random_walk(classes: int, height: int, width: int, steps: int) -> Work:
    """Every step each pixel takes the mean of 68 partners; a launch each."""
    pixels = height * width
    return Work(
        "`random_walk`", f"{classes} maps, {height} x {width}, {steps} steps",
        read=4 * (PAIRS + classes) * pixels, written=4 * classes * pixels,
        vector=steps * 2 * PAIRS * (2 * classes + 1) * pixels,
        cache=steps * 4 * (2 * PAIRS + 2 * classes) * pixels, launches=steps + 1,
    )  # fmt: skip


GAUSSIAN_POINTS, BILATERAL_POINTS = 24_540, 15_432
"""Points of the two lattices of the benchmark's scene: how many there are the image says."""


def dense_crf(height: int, width: int, classes: int, iterations: int) -> Work:
    """Mean field on lattices that are there: splats and slices of 3 and 6 corners, blurs along 3 and 6 axes."""
    pixels, row = height * width, 4 * _power_of_two(classes)
    corners = 3 + 6
    gathered = 2 * corners * pixels * row + 4 * row * (3 * GAUSSIAN_POINTS + 6 * BILATERAL_POINTS)
    tables = 2 * corners * pixels * 8
    return Work(
        "`dense_crf`, mean field", f"{height} x {width}, {classes} classes, {iterations} iterations",
        read=4 * classes * pixels + tables, written=4 * classes * pixels,
        vector=iterations * 2 * 2 * corners * pixels * classes,
        between=iterations * (3 * row * pixels + tables), cache=iterations * gathered,
        launches=iterations * (1 + 2 * 2 + corners) + 1,
        measured=("test_dense_crf_on_the_gpu_against_one_thread", "mean_field_device_ms", 1.0),
    )  # fmt: skip


def superpixels(batch: int, side: int) -> Work:
    """Five passes' worth of visits of nine centres (ten iterations look at a third of the rows but for the last, and
    one before them at all), then eleven passes for connected regions."""
    pixels = batch * side**2
    return Work(
        "`superpixels`", f"{batch} x {side} x {side}", read=3 * pixels, written=4 * pixels, integer=5 * 90 * pixels,
        between=(8 + 5 * 8 + 11 * 8) * pixels, launches=1 + 11 + 10 + 11,
        measured=("test_batch_on_the_gpu_against_one_thread", "device_ms_per_image", float(batch)),
    )  # fmt: skip


def works() -> tuple[Work, ...]:
    """The rows of the table: the shapes of the GPU benchmarks, which are those of a training."""
    return (
        cp_triplet(16, 448, 2),
        cp_triplet(16, 448, 4),
        patch_crop(16, 448),
        augmented_crop(16, (375, 500), (432, 576), 448),
        superpixels(16, 448),
        correlation_forward(12, 192, 21, 3136),
        correlation_backward(12, 192, 21, 3136),
        cp_loss_forward(4, 2, 56, 56),
        cp_loss_backward(4, 2, 56, 56, 20),
        cp_loss_forward(4, 2, 56, 448),
        cp_loss_backward(4, 2, 56, 448, 20),
        pair_affinity(8, 448, 56),
        random_walk(21, 47, 63, 64),
        random_walk(21, 94, 125, 256),
        dense_crf(375, 500, 21, 10),
    )


def seconds_text(seconds: float) -> str:
    """Two significant digits of microseconds or milliseconds."""
    return f"{1e6 * seconds:.2g} us" if seconds < 9.95e-5 else f"{1e3 * seconds:.2g} ms"


def measured_text(work: Work, records: Sequence[dict[str, Any]]) -> str:
    """What the records hold of it, with the GPU's name; a dash where they hold nothing."""
    if work.measured is None:
        return "-"
    benchmark, figure, unit = work.measured
    found = []
    for record in records:
        value = record["benchmarks"].get(benchmark, {}).get(figure)
        if value is not None:
            passes = " (both passes)" if "backward" in work.name else ""
            found.append(f"{seconds_text(1e-3 * unit * value)}{passes}, {record['machine']}")
    return "; ".join(found) or "-"


def gpu_records(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The GPU's records of `pytest benchmarks/ --record`."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("gpu-*.json"))]


def table(folder: Path = RESULTS) -> list[str]:
    """The table in Markdown."""
    records = gpu_records(folder)
    head = (
        "operator",
        "shape",
        "MB",
        "GFLOP",
        "H100 floor",
        "estimate",
        "H200 floor",
        "estimate",
        "bound by",
        "measured",
    )
    lines = [line(*head), line(*["---"] * len(head))]
    for work in works():
        (h100, bound), (h200, other) = (work.floor(gpu) for gpu in (H100, H200))
        lines.append(
            line(
                work.name,
                work.shape,
                f"{work.moved / 1e6:.3g}",
                f"{(work.tensor + work.vector) / 1e9:.2g}",
                seconds_text(h100),
                seconds_text(work.estimate(H100)),
                seconds_text(h200),
                seconds_text(work.estimate(H200)),
                bound if bound == other else f"{bound}, {other}",
                measured_text(work, records),
            )
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it into a page."""
    show("Bytes, operations and floors of the operators on a GPU.", "roofline", table(), arguments)


if __name__ == "__main__":
    main()
