"""Damaged versions of files: bytes, text and JSON, each drawn from a seed."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

NASTY_TEXT = (
    "", "-1", "0", "1e999", "NaN", "9" * 5000, "2" + "0" * 30, "\0", "é", "\ud7ff", "[]", "{}", "null", "true", '"',
    "../../x", "/etc/passwd", "x" * 5000, "&amp;", "<a>", ",", ";", "\n", "\\", "background", "%s", "[bold]",
)  # fmt: skip
NASTY_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 255, 2**31, 2**63, 2**70, 1.5, math.nan, math.inf, -math.inf, "", "x", "1", "\0",
    "\ud800",
    "x" * 5000, "../../x", "/etc/passwd", [], [[]], {}, {"a": 1}, [1, 2, 3], ["a"], [[0, 0, 1e9, 0, 1e9, 1e9]],
    [[0.0, 0.0, 4.0, 0.0]], {"size": [12, 16], "counts": "garbage"}, {"size": [10**9, 10**9], "counts": [1]},
    "background",
)  # fmt: skip


def bytes_mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Flipped, cut, doubled, zeroed and extreme bytes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(0, max(1, len(changed))))
            kind = int(rng.integers(0, 6))
            if kind == 0 and changed:
                changed[place % len(changed)] ^= 1 << int(rng.integers(0, 8))
            elif kind == 1:
                del changed[place:]
            elif kind == 2:
                changed[place:place] = changed[place : place + int(rng.integers(1, 40))]
            elif kind == 3:
                del changed[place : place + int(rng.integers(1, 20))]
            elif kind == 4:
                extremes = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\1\0\0")
                changed[place : place + 4] = extremes[int(rng.integers(0, len(extremes)))]
            else:
                changed[place : place + 8] = rng.bytes(8)
        yield bytes(changed)


def text_mutations(text: str, count: int, seed: int) -> Iterator[bytes]:
    """Pieces of the text replaced by what nobody expects there, and bytes mutated."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        start, stop = sorted(rng.integers(0, len(text) + 1, 2).tolist())
        stop = min(stop, start + int(rng.integers(0, 12)))
        changed = text[:start] + NASTY_TEXT[int(rng.integers(0, len(NASTY_TEXT)))] + text[stop:]
        encoded = changed.encode(("utf-8", "utf-8", "utf-16", "latin-1")[number % 4], "replace")
        yield encoded if number % 3 else next(bytes_mutations(text.encode(), 1, seed + number))


def json_mutations(value: Any, count: int, seed: int) -> Iterator[bytes]:
    """A value somewhere in the structure replaced, removed or doubled."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = copy.deepcopy(value)
        for _ in range(int(rng.integers(1, 3))):
            places = list(_places(changed))
            container, key = places[int(rng.integers(0, len(places)))]
            kind = int(rng.integers(0, 8))
            if kind == 0:
                del container[key]
            elif kind == 1 and isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            else:
                container[key] = copy.deepcopy(NASTY_VALUES[int(rng.integers(0, len(NASTY_VALUES)))])
            if not isinstance(changed, dict | list) or not changed:
                break
        yield json.dumps(changed).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list) and value[key]:
            yield from _places(value[key])
