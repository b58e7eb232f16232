"""Data sets in shards: WebDataset's tars (`wds:PATTERN`) and Parquet with images in a column (`parquet:PATTERN`)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cpn_fast.data.sources.base import FileSource, LazyRecords, Problem, Scan, canonical, unknown_class
from cpn_fast.data.sources.folder import hash_split
from cpn_fast.data.sources.split_names import SPLIT_NAMES
from cpn_fast.data.types import Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES
from cpn_fast.files.label_columns import BACKGROUND, NAMES, normal
from cpn_fast.files.masks import check_class_count, read_classes
from cpn_fast.files.names import class_fault, path_fault, quoted
from cpn_fast.files.shards.index import Example, Examples, Found, ShardIndex, index_of
from cpn_fast.files.shards.storage import ShardFile, find_shards
from cpn_fast.files.shards.tables import ParquetMember, parquet_rows
from cpn_fast.files.shards.tars import TarMember, key_and_ending, members

SUFFIXES = {"wds": ".tar", "parquet": ".parquet"}
"""Kind -> ending of its shards."""

MAX_LABEL_BYTES = 1 << 20
"""Largest .cls, .txt or .json that is read."""

_MASK_ENDINGS = ("mask.png", "seg.png", "segmentation.png")
_LABEL_ENDINGS = (".cls", ".json", ".txt")
_LABEL_KEYS = (*NAMES["labels"], "category", "categories")
_SPLIT = re.compile(r"[^A-Za-z]*([A-Za-z]+)")


class ShardSource(FileSource):
    """Images, labels and masks in shards, found through a table of places that is made once (`files.shards.index`).

    Splits: by the beginning of the shards' names (`train-000.tar`, `validation-00000-of-00002.parquet`) where one has
    such a name, else `train` and `val` by a hash of the id, of the images with labels; and `all`. Classes: those of
    `classes.txt` beside the first shard, else those that Parquet files bring, else all names, sorted. Numbers as labels
    are places in these lists, from 0.

    Args:
        kind: "wds" or "parquet".
        pattern: of the shards; see `files.shards.storage.find_shards`.
        spec: what `open_source` was given.
        max_pixels: largest image that is read.

    Raises:
        DataError: if there is no shard, or a list of classes that cannot be read.
    """

    def __init__(self, kind: str, pattern: str, spec: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self._shards = find_shards(pattern, SUFFIXES[kind])
        super().__init__(spec, _parent(self._shards[0].url), max_pixels)
        self._kind = kind
        by_name = any(split_of(shard.name) for shard in self._shards)
        listed = self.root / "classes.txt"
        classes = read_classes(listed) if "://" not in self._shards[0].url and listed.is_file() else None
        scanner = _Scanner(by_name)
        scan = scanner.tar if kind == "wds" else scanner.table
        self._index = index_of(self._shards, f"{kind} by_name={by_name}", scan, facts=scanner.facts)
        self._names = tuple(self._index.fact("names") or ()) or None
        self._classes, self._label_problems = self._known(classes)
        self._number = {canonical(name): number for number, name in enumerate(self._classes)}

    @property
    def index(self) -> ShardIndex:
        """Where everything lies."""
        return self._index

    @property
    def description(self) -> str:
        """Form and number of the shards."""
        form = "WebDataset tars" if self._kind == "wds" else "Parquet files with images in a column"
        return f"{len(self._shards)} {form}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes."""
        return self._classes

    @property
    def folders(self) -> tuple[Path, ...]:
        """The shards on this machine."""
        return tuple(Path(shard.url) for shard in self._shards if "://" not in shard.url)

    def splits(self) -> tuple[str, ...]:
        """The names of the splits that hold an image, `all` last."""
        return tuple(self._index.splits())

    def _scan(self, split: str) -> Scan:
        problems = [Problem(url, message) for url, message in self._index.problems()]
        records = ShardRecords(Examples(self._index, split), self._number, self._names)
        return Scan(records, (*problems, *self._label_problems))

    def _known(self, listed: tuple[str, ...] | None) -> tuple[tuple[str, ...], list[Problem]]:
        """The classes, and the labels that are none of them."""
        found = {_class_of(name, self._names or listed): where for name, where in self._index.labels().items()}
        found.pop(BACKGROUND, None)
        bare = tuple(name for name in self._names or () if name != BACKGROUND) or None
        classes = listed or bare or tuple(sorted(name for name in found if not class_fault(name)))
        check_class_count(classes, self.spec)
        known, problems = set(map(canonical, classes)), []
        for name, where in found.items():
            if canonical(name) not in known:
                fault = class_fault(name)
                message = f"label {quoted(name)} {fault}" if fault else unknown_class(name, classes)
                problems.append(Problem(self.spec, f"{where}: {message}"))
        return classes, problems


class ShardRecords(LazyRecords):
    """The records of a split, made as they are asked for; a slice of them is one too.

    Args:
        examples: where they lie.
        number: class -> its number.
        names: of labels that are numbers.
    """

    def __init__(self, examples: Examples, number: dict[str, int], names: tuple[str, ...] | None) -> None:
        self._examples, self._number, self._names = examples, number, names
        self._listed = names or tuple(number)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: Any) -> Any:
        found = self._examples[place]
        return ShardRecords(found, self._number, self._names) if isinstance(place, slice) else self._record(found)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self._examples)

    def any_mask(self) -> bool:
        """Whether any image of all splits has a mask."""
        return self._examples.table.any_mask()

    def find(self, image_id: str) -> Record | None:
        """The record of an id, of whatever split; None where there is none."""
        example = self._examples.table.find(image_id)
        return None if example is None else self._record(example)

    def _record(self, example: Example) -> Record:
        labels = None
        if example.about is not None:
            numbers = (self._number.get(canonical(_class_of(label, self._listed))) for label in example.about)
            labels = tuple(sorted({number for number in numbers if number is not None}))
        return Record(example.id, example.image, labels, example.mask)


def split_of(name: str) -> str | None:
    """The split that a shard's name begins with; None for none."""
    match = _SPLIT.match(name)
    return None if match is None else SPLIT_NAMES.get(match[1].lower())


class _Scanner:
    """Looks through shards of either kind.

    Args:
        by_name: splits are those of the shards' names.
    """

    def __init__(self, by_name: bool) -> None:
        self._by_name = by_name
        self._names: tuple[str, ...] | None = None

    def facts(self) -> dict[str, Any]:
        """Names of the numbers in a column of labels."""
        return {"names": self._names}

    def tar(self, shard: ShardFile) -> Iterator[Found]:
        """The examples of a tar: members that follow one another with one name up to the first dot."""
        key, held = "", dict[str, TarMember]()
        for member in members(shard, held=_LABEL_ENDINGS, held_bytes=MAX_LABEL_BYTES):
            parts = key_and_ending(member.path)
            if parts is None:
                continue
            if parts[0] != key and held:
                yield self._example(shard, key, held)
                held = {}
            key = parts[0]
            if parts[1] in held:
                yield Found(problem=f"member {quoted(member.path)} comes twice; expected each once: write it again")
            held[parts[1]] = member
        if held:
            yield self._example(shard, key, held)

    def _example(self, shard: ShardFile, key: str, held: dict[str, TarMember]) -> Found:
        mask = next((held.pop(ending) for ending in _MASK_ENDINGS if ending in held), None)
        images = [member for ending, member in held.items() if f".{ending}" in IMAGE_SUFFIXES]
        if len(images) != 1:
            found = ", ".join(sorted(held)) or "a mask alone"
            what = f"{len(images)} images" if images else "no image"
            return Found(problem=f"{key!r} has {what} ({quoted(found)}); expected one, and a mask as {key}.mask.png")
        labels = _tar_labels(held)
        if isinstance(labels, str):
            return Found(problem=f"member {key}{labels}")
        return self._found(shard, key, images[0], mask, labels)

    def table(self, shard: ShardFile) -> Iterator[Found]:
        """The rows of a Parquet file."""
        stem = PurePosixPath(shard.name).stem
        for columns, row in parquet_rows(shard):
            if columns.names:
                if self._names and self._names != columns.names:
                    raise DataError(f"{shard.url}: its class names are others than those of the shards before it")
                self._names = columns.names
            key, path = row.key, row.path if isinstance(row.path, str) and row.path else None
            if key is None:
                key = PurePosixPath(path).stem if path else f"{stem}/{row.number:07d}"
            key = str(key) if isinstance(key, int) else key
            if fault := path_fault(key):
                yield Found(problem=f"row {row.number}: id {quoted(key)} {fault}; expected a name")
                continue
            labels = _listed(row.labels)
            if isinstance(labels, str):
                yield Found(problem=f"row {row.number}, {columns.labels}: {labels}")
                continue
            name = PurePosixPath(path).name if path else f"{key}.jpg"
            image = ParquetMember(shard, columns.image, row.group, row.place, row.number, name)
            mask = None
            if columns.mask and row.has_mask:
                mask = ParquetMember(shard, columns.mask, row.group, row.place, row.number, f"{key}.png")
            yield self._found(shard, key, image, mask, labels)

    def _found(
        self, shard: ShardFile, key: str, image: Any, mask: Any, labels: list[str | int] | None
    ) -> Found:  # fmt: skip
        split = split_of(shard.name) if self._by_name else None
        if not self._by_name and labels is not None:
            split = hash_split(key)
        return Found(key, image, mask, labels, tuple(map(str, labels or ())), split)


def _tar_labels(held: dict[str, TarMember]) -> list[str | int] | str | None:
    """The labels of an example, None where nobody has said, or what is wrong, beginning with the file's ending."""
    for ending in ("cls", "json", "txt"):
        member = held.get(ending)
        if member is None:
            continue
        if member.size > MAX_LABEL_BYTES:
            return f".{ending}: {member.size:,} bytes of labels; expected at most {MAX_LABEL_BYTES:,}"
        try:
            text = member.read_bytes().decode("utf-8")
            value: Any = _json_labels(json.loads(text)) if ending == "json" else _text_labels(text)
        except (ValueError, RecursionError):
            return f".{ending}: neither text in UTF-8 nor labels as {'JSON' if ending == 'json' else 'names'}"
        if value is None and ending == "json":
            continue  # other facts about the image
        labels = _listed(value)
        return f".{ending}: {labels}" if isinstance(labels, str) else labels
    return None


def _json_labels(value: Any) -> Any:
    if isinstance(value, dict):
        return next((value[key] for key in _LABEL_KEYS if value.get(key) is not None), None)
    return value


def _text_labels(text: str) -> list[str] | None:
    names = [name.strip() for line in text.splitlines() for name in line.split(";")]
    return [name for name in names if name] or None


def _listed(value: Any) -> list[str | int] | str | None:
    """Names and numbers in a list, None for none, or what is wrong."""
    if value is None:
        return None
    items = value if isinstance(value, list) else _text_labels(value) or [] if isinstance(value, str) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int):
            return f"label {quoted(item)}; expected names or numbers"
    return [normal(item) if isinstance(item, str) else item for item in items]


def _class_of(label: str | int, listed: Sequence[str] | None) -> str:
    """A label's class: a number is a place in the list, unless a class is called so."""
    text = str(label)
    if listed and text not in listed and text.isdecimal() and len(text) < 5 and int(text) < len(listed):
        return listed[int(text)]
    return normal(text)


def _parent(url: str) -> Path:
    return Path(os.path.dirname(url)) if "://" not in url else Path(url.rpartition("/")[0])


OPENERS = {kind: partial(ShardSource, kind) for kind in SUFFIXES}
"""Kind -> what opens a pattern; the text that a user typed; the largest image in pixels."""


def bare_pattern(paths: Iterable[Path]) -> dict[str, str]:
    """The kinds of shards among the files of a folder -> by what."""
    endings = {path.suffix.lower() for path in paths}
    return {kind: f"*{suffix}" for kind, suffix in SUFFIXES.items() if suffix in endings}
