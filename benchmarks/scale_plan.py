"""A plan on paper: what labelling N images takes on many machines, from rates that were measured on a few.

python -m benchmarks.scale_plan [--page docs/develop/scale.md]

prints the table, or writes it into the page. Nothing of a cluster of this size was run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from benchmarks.tables import line, show


@dataclass(frozen=True)
class Rates:
    """What one image costs, on one core where it is a time.

    Attributes:
        read_bytes: the image.
        written_bytes: its mask and its line of the manifest.
        decode: seconds to decode it.
        label_cpu: seconds to label it without a GPU, four scales with flip.
        store: seconds to encode and write its mask and its line, by the one process that writes.
        crf: seconds of dense CRF, 21 classes.
    """

    read_bytes: float = 38_000
    written_bytes: float = 4_400 + 280
    decode: float = 2e-3
    label_cpu: float = 1 / 0.97
    store: float = 0.43e-3
    crf: float = 0.2


MEASURED = Rates()
"""Bytes: means of 2,546 photographs of 500 px, 1,909 masks of them and the lines of their manifest. Times of one core:
decoding, CRF and labelling (MobileNetV2, eager) of docs/results/speed.md, on an AMD EPYC; writing by
benchmarks/memory_over_images.py, tiny masks into shards, so more for large ones."""


@dataclass(frozen=True)
class Plan:
    """How long N images take.

    Attributes:
        images: N.
        gpus: how many, one worker each.
        gpu_rate: images a second of one; a guess until one has been measured.
        cores: of each GPU's machine, per GPU.
        rates: of one image.
    """

    images: float = 1e7
    gpus: int = 100
    gpu_rate: float = 300.0
    cores: int = 12
    rates: Rates = MEASURED

    def hours(self, seconds_each: float, parallel: float) -> float:
        """Hours of N images that take so many seconds each on so many processors."""
        return self.images * seconds_each / parallel / 3600

    def parts(self) -> dict[str, float]:
        """Hours of each part, were it alone; the largest says how long it takes."""
        cores = self.gpus * self.cores
        return {
            "network, GPUs": self.hours(1 / self.gpu_rate, self.gpus),
            "decoding, cores": self.hours(self.rates.decode, cores),
            "dense CRF, cores": self.hours(self.rates.crf, cores),
            "one driver that writes": self.hours(self.rates.store, 1),
        }

    @property
    def drivers(self) -> int:
        """How many drivers (`--shard i/n`) keep pace with the GPUs."""
        return ceil(self.gpus * self.gpu_rate * self.rates.store)

    @property
    def read_rate(self) -> float:
        """Bytes a second that all GPUs read."""
        return self.gpus * self.gpu_rate * self.rates.read_bytes

    def cost_per_million(self, gpu_hour: float) -> float:
        """Price of labelling a million images by the GPUs' time, at a price of an hour of one."""
        return 1e6 / self.gpu_rate / 3600 * gpu_hour


GPU_RATES = (100.0, 300.0, 1000.0)


def table() -> list[str]:
    """Rows of Markdown: 10 million images on 100 GPUs, by what a GPU gives."""
    plans = [Plan(gpu_rate=rate) for rate in GPU_RATES]
    rows = [line("10 million images, 100 GPUs", *(f"{rate:g} images/s a GPU" for rate in GPU_RATES))]
    rows.append(line(*["---"] * (len(plans) + 1)))
    for name in plans[0].parts():
        rows.append(line(f"{name}: minutes", *(f"{60 * plan.parts()[name]:.1f}" for plan in plans)))
    rows.append(line("read by all, GB/s", *(f"{plan.read_rate / 1e9:.2f}" for plan in plans)))
    rows.append(line("drivers that keep pace", *(plan.drivers for plan in plans)))
    prices = (f"{plan.cost_per_million(3):.2f}" for plan in plans)
    rows.append(line("price of a million images, a GPU at 3 an hour", *prices))
    read, written = (1e7 * size / 1e9 for size in (MEASURED.read_bytes, MEASURED.written_bytes))
    hours = Plan().hours(MEASURED.label_cpu, 1200)
    total = f"In all {read:.0f} GB read and {written:.0f} GB written."
    return [*rows, "", f"{total} Without GPUs, on the same 1,200 cores: {hours:.1f} hours."]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it into a page."""
    show(__doc__.partition("\n")[0], "plan", table(), arguments)


if __name__ == "__main__":
    main()
