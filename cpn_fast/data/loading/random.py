"""Counted randomness: every decision derives from (seed, epoch, sample id, purpose), never from a shared stream."""

from __future__ import annotations

import hashlib

import numpy as np


def _digest(seed: int, epoch: int, sample_id: str, purpose: str, size: int) -> bytes:
    # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
    name, use = sample_id.encode(), purpose.encode()
    message = b"".join(
        (
            seed.to_bytes(16, "little", signed=True),
            epoch.to_bytes(16, "little", signed=True),
            len(name).to_bytes(8, "little"),
            name,
            use,
        )
    )
    return hashlib.blake2b(message, digest_size=size).digest()


def key64(seed: int, epoch: int, sample_id: str, purpose: str) -> int:
    """Random key of one decision, for a counter-based generator on any device.

    Args:
        seed: the run's seed, any integer of at most 127 bits.
        epoch: pass over the data, from 0.
        sample_id: the sample's id.
        purpose: what the numbers are for, e.g. "hide"; two purposes never share bits.

    Returns:
        A signed 64-bit integer, evenly distributed.
    """
    return int.from_bytes(_digest(seed, epoch, sample_id, purpose, 8), "little", signed=True)


def generator(seed: int, epoch: int, sample_id: str, purpose: str) -> np.random.Generator:
    """numpy generator (Philox with a 128-bit key) of one (seed, epoch, sample id, purpose); arguments as in `key64`."""
    key = int.from_bytes(_digest(seed, epoch, sample_id, purpose, 16), "little")
    return np.random.Generator(np.random.Philox(key=key))
