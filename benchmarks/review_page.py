"""What `cpn review` takes for many masks of a photograph's size: CPU seconds, files, and the time to open in Chromium.

python -m benchmarks.review_page --images 10000
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cpn_fast.files.masks import write_labelmap, write_mask
from cpn_fast.review.command import run_review
from cpn_fast.review.options import ReviewConfig

DIFFERENT = 50
SIZE = (375, 500)


def write_folder(root: Path, count: int) -> Path:
    """`count` masks with an image and a line of the manifest each; every `DIFFERENT`-th shows the same."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = root / "masks" / "SegmentationClass"
    (root / "photos").mkdir()
    lines = []
    for number in range(count):
        name = f"{number:06}"
        image, first = root / "photos" / f"{name}.jpg", f"{number % DIFFERENT:06}"
        if number < DIFFERENT:
            mask = (np.hypot(y - rng.integers(375), x - rng.integers(500)) < 120).astype(np.uint8) * (1 + number % 20)
            write_mask(masks / f"{name}.png", mask)
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(image, quality=90)
        else:
            shutil.copyfile(masks / f"{first}.png", masks / f"{name}.png")
            shutil.copyfile(root / "photos" / f"{first}.jpg", image)
        entry = {"id": name, "status": "ok", "image": str(image), "confidence": round(float(rng.random()), 4)}
        lines.append(json.dumps(entry))
    (root / "masks" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    write_labelmap(root / "masks" / "labelmap.txt", [f"class {number}" for number in range(1, 21)])
    return root / "masks"


def seconds_to_open(page: Path) -> str:
    """Until the first card stands in the browser; where there is none, that."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return "no Chromium here"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page()
        start = time.monotonic()
        shown.goto(page.as_uri())
        shown.locator(".card.current").wait_for()
        return f"{time.monotonic() - start:.1f} s"


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    with tempfile.TemporaryDirectory() as folder:
        masks = write_folder(Path(folder), parser.parse_args().images)
        page = masks / "review.html"
        for what in ("first call", "second call"):
            cpu, wall = time.process_time(), time.monotonic()
            run_review(ReviewConfig(masks))
            print(f"{what}: {time.process_time() - cpu:.1f} CPU seconds, {time.monotonic() - wall:.1f} s", flush=True)
        size = sum(file.stat().st_size for file in (masks / "review-files").iterdir())
        print(f"page {page.stat().st_size / 1e6:.1f} MB, small pictures {size / 1e6:.0f} MB")
        print(f"opened in {seconds_to_open(page)}")


if __name__ == "__main__":
    main()
