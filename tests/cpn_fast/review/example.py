"""Masks, some of whose names would do harm on a careless page, and their images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cpn_fast.files.masks import write_labelmap, write_mask

CLASSES = ("cat", "<img src=x onerror=window.harmed=1>", "dog & co")
EVIL = (
    "<script>window.harmed=1</script>",  # a folder and a file
    '"><img src=x onerror=window.harmed=1>',
    'it\'s #1 50%20 & "quoted"',
    "javascript:alert(1)?x=y",
    "{{7*7}} <!--<script>",
    "comma, semicolon; new\nline",
    "ünï 日本 \u202e",
    "plain",
)
SIZE = (40, 60)


def write(root: Path, names: Sequence[str] = EVIL, manifest: bool = True) -> Path:
    """`root/masks` and `root/photos`: the mask of number n holds class 1 + n % 3, or nothing where n % 4 is 3.

    The n-th is (n + 1) / (number of masks + 1) sure, so that they are shown in this order.
    """
    lines = []
    for number, name in enumerate(names):
        mask = np.zeros(SIZE, np.uint8)
        if number % 4 != 3:
            mask[10:30, 20:50] = 1 + number % 3
        mask[:2] = 255
        write_mask(root / "masks" / "SegmentationClass" / f"{name}.png", mask)
        image = root / "photos" / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (200, 20 * number % 256, 50)).save(image)
        confidence = round((number + 1) / (len(names) + 1), 4)
        entry = {"id": name, "status": "ok", "image": str(image), "confidence": confidence}
        lines.append(json.dumps(entry))
    if manifest:
        (root / "masks" / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_labelmap(root / "masks" / "labelmap.txt", CLASSES)
    return root / "masks"
