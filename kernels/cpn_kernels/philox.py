"""Philox4x32-10, the counter-based generator behind every hidden patch, in torch integer arithmetic.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A word depends on (key, counter) alone, so the
same bits come out of every backend, batch order and device.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of `word * multiplier`, both below 2**32, without ever leaving signed 64 bits."""
    high_part = word * (multiplier >> 16)
    low_part = word * (multiplier & 0xFFFF)
    high = (high_part + (low_part >> 16)) >> 16
    low = (((high_part & 0xFFFF) << 16) + low_part) & _WORD
    return high, low


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit words of each (counter, key).

    Args:
        counter: four int64 tensors of counter words in [0, 2**32), broadcastable with each other and the key.
        key: two int64 tensors of key words in [0, 2**32).

    Returns:
        Four int64 tensors of words in [0, 2**32), of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    return tuple(word.expand(shape) for word in (c0, c1, c2, c3))


def split_key(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Split signed 64-bit keys into (low, high) 32-bit words, as int64 in [0, 2**32)."""
    return keys & _WORD, (keys >> 32) & _WORD


def first_word(keys: Tensor, counters: Tensor) -> Tensor:
    """Word 0 of Philox4x32-10 at counter (c, 0, 0, 0).

    Args:
        keys: int64, any 64 bits; broadcastable with `counters`.
        counters: integer tensor in [0, 2**32).

    Returns:
        int64 of the broadcast shape, in [0, 2**32).
    """
    counters = counters.to(torch.int64)
    zero = torch.zeros((), dtype=torch.int64, device=counters.device)
    return philox4x32((counters, zero, zero, zero), split_key(keys))[0]
