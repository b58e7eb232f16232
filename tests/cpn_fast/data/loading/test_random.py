"""Counted randomness: pinned values, separation of its arguments, even bits."""

from __future__ import annotations

import hashlib

import numpy as np

from cpn_fast.data.loading.random import generator, key64


def test_key_is_blake2b_of_the_stated_bytes():
    message = (3).to_bytes(16, "little") + (7).to_bytes(16, "little") + (5).to_bytes(8, "little") + b"img_1" + b"hide"
    expected = int(np.frombuffer(hashlib.blake2b(message, digest_size=8).digest(), "<i8")[0])
    assert key64(3, 7, "img_1", "hide") == expected


def test_every_argument_counts_and_none_runs_into_the_next():
    keys = [
        key64(0, 0, "ab", "c"),
        key64(0, 0, "a", "bc"),
        key64(1, 0, "ab", "c"),
        key64(0, 1, "ab", "c"),
        key64(-1, 0, "ab", "c"),
        key64(0, 0, "äb", "c"),
    ]
    assert len(set(keys)) == len(keys)


def test_keys_fill_the_signed_64_bits_evenly():
    keys = np.array([key64(0, epoch, f"{image}", "hide") for epoch in range(20) for image in range(100)])
    assert keys.dtype == np.int64
    bits = (keys.view(np.uint64)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    # 2,000 keys: the mean of a fair bit stays within 5 standard deviations.
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(2000)


def test_generator_repeats_and_is_philox():
    first, second = (generator(0, 2, "image", "augment") for _ in range(2))
    assert isinstance(first.bit_generator, np.random.Philox)
    values = first.random(8)
    assert np.array_equal(values, second.random(8))
    assert not np.array_equal(values, generator(0, 3, "image", "augment").random(8))
    assert not np.array_equal(values, generator(0, 2, "image", "grid").random(8))
