"""Philox against the known-answer vectors that Random123 publishes for philox4x32-10."""

from __future__ import annotations

import pytest
import torch

from cpn_kernels.philox import first_word, philox4x32, split_key

PUBLISHED = [  # counter, key, words (kat_vectors of Random123)
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def python_philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """The ten rounds in Python's unbounded integers, from the paper's figure."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(right >> 32) ^ c[1] ^ k[0], right % 2**32, (left >> 32) ^ c[3] ^ k[1], left % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_published_vectors(counter: tuple, key: tuple, words: tuple) -> None:
    drawn = philox4x32(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert tuple(int(word) for word in drawn) == words


def test_first_word_takes_the_signed_key_apart() -> None:
    keys = torch.tensor([0, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822, -123456789012345])
    patches = torch.tensor([0, 1, 199, 2**31 - 1], dtype=torch.int64)
    words = first_word(keys[:, None], patches[None])
    for row, key in enumerate(keys.tolist()):
        unsigned = key % 2**64
        for column, patch in enumerate(patches.tolist()):
            expected = python_philox((patch, 0, 0, 0), (unsigned % 2**32, unsigned >> 32))
            assert int(words[row, column]) == expected[0]


def test_split_key_is_unsigned() -> None:
    low, high = split_key(torch.tensor([-1, -(2**63)]))
    assert low.tolist() == [0xFFFFFFFF, 0]
    assert high.tolist() == [0xFFFFFFFF, 0x80000000]
