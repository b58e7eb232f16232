"""The run lengths of Label Studio's brush: bits as the library `@thi.ng/rle-pack` packs them.

A head of 32 bits for the number of values, 5 for their width less 1, and four times 4 for the widths less 1 in which
lengths are given. Then blocks: one bit, 1 for a run of one value and 0 for values one by one; two bits that choose the
width of the length; the length less 1; the value or values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORD = 8
_WIDTHS = (3, 4, 8, 16)
_CHANNELS = 4


def pack_region(region: NDArray[np.bool_]) -> list[int]:
    """A region as the red, green, blue and alpha of its pixels, 255 inside and 0 outside.

    Args:
        region: bool [H, W].

    Returns:
        bytes, 0..255.
    """
    flat = region.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat))
    lengths = np.diff(ends, prepend=0) * _CHANNELS
    value, parts = bool(flat[0]), [f"{len(flat) * _CHANNELS:032b}{WORD - 1:05b}", *(f"{w - 1:04b}" for w in _WIDTHS)]
    for length in lengths.tolist():
        word = "11111111" if value else "00000000"
        while length:
            step = min(length, 1 << _WIDTHS[-1])
            choice = next(number for number, width in enumerate(_WIDTHS) if step <= 1 << width)
            parts.append(f"1{choice:02b}{step - 1:0{_WIDTHS[choice]}b}{word}")
            length -= step
        value = not value
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def unpack_region(packed: list[int], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels whose alpha is not 0.

    Args:
        packed: bytes, 0..255.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        bool [height, width].

    Raises:
        ValueError: if these are no run lengths of such an image; it says why.
    """
    try:
        data = bytes(packed)
    except (TypeError, ValueError):
        raise ValueError("they are no list of bytes") from None
    bits = "".join(f"{byte:08b}" for byte in data)
    if len(bits) < 53:
        raise ValueError("they end within the head")
    total, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
    widths = [int(bits[place : place + 4], 2) + 1 for place in range(37, 53, 4)]
    if total != height * width * _CHANNELS or word != WORD:
        raise ValueError(f"they hold {total} values of {word} bits, expected {height * width * _CHANNELS} of {WORD}")
    values, begin, place = np.zeros(total, dtype=np.uint8), 0, 53
    stored = np.frombuffer(data, dtype=np.uint8)
    while begin < total:
        size = widths[int(bits[place + 1 : place + 3] or "0", 2)]
        head = place + 3 + size
        if head + word > len(bits):
            raise ValueError(f"they end after {begin} of {total} values")
        end = begin + int(bits[place + 3 : head], 2) + 1
        if end > total:
            raise ValueError(f"their runs pass the end by {end - total} values")
        if bits[place] == "1":
            values[begin:end] = int(bits[head : head + word], 2)
            place = head + word
        else:
            place = head + word * (end - begin)
            if place > len(bits):
                raise ValueError(f"they end after {begin} of {total} values")
            values[begin:end] = _words(stored, head, end - begin)
        begin = end
    return values.reshape(height, width, _CHANNELS)[..., 3] > 0


def _words(stored: NDArray[np.uint8], place: int, count: int) -> NDArray[np.uint8]:
    """`count` bytes that begin at any bit."""
    whole, shift = divmod(place, 8)
    part = np.append(stored[whole : whole + count + 1], np.zeros(1, np.uint8)).astype(np.uint16)
    return (((part[:count] << shift) | (part[1 : count + 1] >> (8 - shift))) & 255).astype(np.uint8)
