"""What images and classes share: classes that come together, classes of few images, pictures in several splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from cpn_fast.data.types import Record
from cpn_fast.files.member import ImageFile

FEW = 10
"""Images of a class, below which little is learned."""

_MAX_PAIRS = 10
_MAX_LABELS = 40
_PURPOSES = ("train", "val", "test")


def pairs(classes: Sequence[str], records: Sequence[Record]) -> tuple[tuple[str, str, int, float], ...]:
    """The classes that are most often in one image.

    Args:
        classes: the K foreground class names.
        records: the images.

    Returns:
        (class, class, images with both, their share of the images of the rarer one), the most images first.
    """
    single, both = _counts(records)
    found = [
        (classes[first], classes[second], count, count / min(single[first], single[second]))
        for (first, second), count in both.most_common(_MAX_PAIRS)
    ]
    return tuple(found)


def _counts(records: Sequence[Record]) -> tuple[Counter[int], Counter[tuple[int, int]]]:
    single: Counter[int] = Counter()
    both: Counter[tuple[int, int]] = Counter()
    for record in records:
        labels = record.labels or ()
        single.update(labels)
        both.update(combinations(labels[:_MAX_LABELS], 2))
    return single, both


def sharing_warnings(classes: Sequence[str], records: Sequence[Record], split: str) -> list[str]:
    """Classes of few images, and classes that are never apart, in the split that is trained on; one line each."""
    single, both = _counts(records)
    found = []
    few = [f"{classes[number]!r} ({count})" for number, count in sorted(single.items()) if count < FEW]
    if few:
        shown = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
        found.append(f"classes with fewer than {FEW} images in split {split!r}: {shown}; little is learned from so few")
    for (first, second), count in sorted(both.items()):
        if 1 < count == single[first] == single[second]:
            found.append(
                f"classes {classes[first]!r} and {classes[second]!r} are in the same {count} images of split "
                f"{split!r}: nothing tells them apart"
            )
    return found


def leaks(splits: Mapping[str, Sequence[Record]], digests: Mapping[ImageFile, bytes]) -> list[str]:
    """Pictures, by their content, that are in splits of different purpose; one line for each two splits.

    Args:
        splits: name -> its images. Those whose name does not begin with train, val or test are of no purpose, nor is
            one of two purposes (trainval).
        digests: image file -> digest of its pixels, empty where it cannot be read.
    """
    of_purpose: dict[str, dict[bytes, ImageFile]] = defaultdict(dict)
    for name, records in splits.items():
        purposes = [purpose for purpose in _PURPOSES if purpose in name.lower()]
        if len(purposes) != 1 or not name.lower().startswith(purposes[0]):
            continue
        for record in records:
            if digest := digests.get(record.image_path):
                of_purpose[purposes[0]].setdefault(digest, record.image_path)
    found = []
    for first, second in combinations([name for name in _PURPOSES if name in of_purpose], 2):
        shared = [digest for digest in of_purpose[first] if digest in of_purpose[second]]
        if shared:
            example = f"{of_purpose[first][shared[0]]} and {of_purpose[second][shared[0]]}"
            found.append(
                f"pictures both in {first} and in {second}: {len(shared)}, e.g. {example}; scores on them say nothing: "
                "remove them from one of both"
            )
    return found
