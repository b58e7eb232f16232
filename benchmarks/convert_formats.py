"""CPU seconds that `cpn convert` takes there and back for many tiny masks: that the cost per image does not grow.

python -m benchmarks.convert_formats --images 10000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cpn_fast.convert.command import ConvertConfig, run_convert
from cpn_fast.convert.formats import FORMATS
from cpn_fast.files.masks import encode_mask, write_labelmap


def write_masks(root: Path, count: int) -> None:
    """`count` masks of 16 x 16 pixels with two classes, and images of that size."""
    rng = np.random.default_rng(0)
    for name in ("masks/SegmentationClass", "photos"):
        (root / name).mkdir(parents=True)
    write_labelmap(root / "masks" / "labelmap.txt", ("cat", "dog"))
    for number in range(count):
        mask = np.zeros((16, 16), dtype=np.uint8)
        top, left = rng.integers(0, 8, 2)
        mask[top : top + 8, left : left + 8] = 1 + number % 2
        (root / "masks" / "SegmentationClass" / f"{number:06}.png").write_bytes(encode_mask(mask))
        Image.new("RGB", (16, 16)).save(root / "photos" / f"{number:06}.png")


def main() -> None:
    """Print a row per format: CPU seconds out, CPU seconds back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_masks(root, count)
        for name in FORMATS:
            out, photos = root / name, root / "photos"
            start = time.process_time()
            run_convert(ConvertConfig(root / "masks", name, out, images=photos))
            middle = time.process_time()
            run_convert(ConvertConfig(out, name, root / f"{name}-back", to="masks", images=photos))
            print(f"{name:>14} {middle - start:8.1f} {time.process_time() - middle:8.1f}", flush=True)


if __name__ == "__main__":
    main()
