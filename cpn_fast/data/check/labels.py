"""Labels from which nothing, or something else than was meant, is learned: warnings with their likely meaning."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from cpn_fast.data.types import VOID, Record

_SEPARATORS = re.compile(r"[,|/\t]|\band\b|&")


def label_warnings(classes: Sequence[str], records: Sequence[Record], split: str) -> list[str]:
    """What is odd about the labels of the split that is trained on.

    Args:
        classes: the K foreground class names.
        records: the split's; those without labels do not count.
        split: its name, for the messages.

    Returns:
        one line each: names that look like several labels, names that differ by their writing alone, classes without
        an image or in every one, a single image.
    """
    counts, labelled = Counter[int](), 0
    for record in records:
        if record.labels is not None:
            labelled += 1
            counts.update(set(record.labels))
    return [
        *_joined_names(classes, counts),
        *_alike_names(classes, counts),
        *_nothing_to_learn(classes, labelled, counts, split),
    ]


def mask_warnings(classes: Sequence[str], masks: Sequence[tuple[Record, tuple[int, ...]]]) -> list[str]:
    """Classes that images are labelled with, but whose value is in none of these images' masks.

    Args:
        classes: the K foreground class names.
        masks: records with the values of their masks, empty without one.

    Returns:
        one line, or none. What void (255) may hide of a single image is no fault.
    """
    labelled: Counter[int] = Counter()
    shown: set[int] = set()
    for record, values in masks:
        if values:
            labelled.update(record.labels or ())
            shown.update(value - 1 for value in values)
    missing = sorted(number for number in labelled if number not in shown)
    if not missing:
        return []
    names = ", ".join(f"{classes[number]!r} ({_images(labelled[number])})" for number in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    all_values = {value for _, values in masks for value in values}
    hint = "do the numbers in the masks fit the order of the classes?"
    if VOID in all_values and all_values <= {0, VOID}:
        hint = "the masks hold 0 and 255 alone, and 255 is void, never scored: write 1 where 255 means foreground"
    return [f"classes without a pixel in the masks of the images that are labelled with them: {names}{more}; {hint}"]


def _joined_names(classes: Sequence[str], counts: Counter[int]) -> list[str]:
    found = []
    for number, name in enumerate(classes):
        parts = [part.strip() for part in _SEPARATORS.split(name)]
        known = [part for part in parts if part in classes]
        if len(parts) > 1 and ("," in name or known):
            pieces = " and ".join(repr(part) for part in parts if part)
            found.append(
                f"class {name!r} ({_images(counts[number])}) is one name; if it means {pieces}, separate labels by `;`"
            )
    return found


def _alike_names(classes: Sequence[str], counts: Counter[int]) -> list[str]:
    alike: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(classes):
        alike[re.sub(r"[\s_-]+", "", name).casefold()].append(number)
    return [
        "classes that differ by case, blanks or hyphens alone: "
        + ", ".join(f"{classes[number]!r} ({_images(counts[number])})" for number in group)
        + "; if they are one class, write them alike"
        for group in alike.values()
        if len(group) > 1
    ]


def _nothing_to_learn(classes: Sequence[str], labelled: int, counts: Counter[int], split: str) -> list[str]:
    if not labelled:
        return []
    if labelled == 1:
        return [f"split {split!r} has one image with labels: nothing can be learned from it"]
    found = []
    everywhere = [classes[number] for number, count in counts.items() if count == labelled]
    if everywhere:
        found.append(
            f"{_some(everywhere)} in every one of the {labelled} images of split {split!r}: what it looks like "
            "cannot be learned without images that lack it, and its scores say nothing"
        )
    absent = [name for number, name in enumerate(classes) if not counts[number]]
    if absent:
        found.append(f"{_some(absent)} in no image of split {split!r}: nothing can be learned about it")
    return found


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"class {shown} is" if len(names) == 1 else f"classes {shown} are"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
