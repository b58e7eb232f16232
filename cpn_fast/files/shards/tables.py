"""The rows of Parquet shards whose images lie in a column, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cpn_fast.files.errors import DataError
from cpn_fast.files.label_columns import NAMES
from cpn_fast.files.member import Member
from cpn_fast.files.names import quoted
from cpn_fast.files.shards.storage import ShardFile, shard_errors

MAX_GROUP_BYTES = 2 << 30
"""Largest row group that is read, in bytes without compression: one row is read by reading the images of its group."""

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
_MASKS = ("mask", "masks", "segmentation", "segmentation_mask", "annotation")
_KEYS = ("id", "image_id", "key", "__key__")
_LABELS = (*NAMES["labels"], "category", "categories", "fine_label")
_KEPT = 3
_ROWS, _ROWS_WITH_MASK = 1024, 64


@dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: the images, bytes or struct{bytes, path}.
        mask: the ground truth, in the same form; None without.
        key: ids; None without.
        labels: names or numbers, one or a list; None without.
        names: of the numbers, where the file says them.
    """

    image: str
    mask: str | None
    key: str | None
    labels: str | None
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class ParquetMember(Member):
    """The image of a row.

    Attributes:
        shard: the file.
        column: which holds it.
        group: row group.
        row: in the row group.
        number: in the file, from 0.
        path: its name as the row says, else the row's number.
    """

    shard: ShardFile
    column: str
    group: int
    row: int
    number: int
    path: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.path

    def read_bytes(self) -> bytes:
        """Its content; the images of the row group are kept for the next ones."""
        data = _bytes_of(_groups.column(self.shard, self.group, self.column)[self.row].as_py())
        if data is None:
            raise DataError(f"{self}: no bytes; expected the image itself: a path outside of the file is not followed")
        return data

    def __str__(self) -> str:
        return f"{self.shard.url}: row {self.number}, {self.column}"


@dataclass(frozen=True)
class Row:
    """What a row says without its images.

    Attributes:
        number: in the file, from 0.
        group: row group.
        place: in the row group.
        key: its id, None without.
        path: of its image, None without.
        labels: a name, a number, a list of either, or None.
        has_mask: whether it has ground truth.
        extra: the other column that was asked for.
    """

    number: int
    group: int
    place: int
    key: Any
    path: Any
    labels: Any
    has_mask: bool
    extra: Any = field(default=None)


def parquet_rows(shard: ShardFile, image: str | None = None, extra: str | None = None) -> Iterator[tuple[Columns, Row]]:
    """The rows of a file without their images (masks are read, to know which rows have one), a few at a time.

    Args:
        shard: the file.
        image: the column of images; None = found by its name.
        extra: another column to be given.

    Raises:
        DataError: of one line, for a file that is damaged, or has no column of images or a row group that is too large.
    """
    with _parquet(shard) as file:
        found = find_columns(file.schema_arrow, shard, image)
        wanted = _names(file.schema_arrow, found, extra)
        number = 0
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            if about.total_byte_size > MAX_GROUP_BYTES:
                raise DataError(
                    f"{shard.url}: row group {group} is of {about.total_byte_size:,} bytes, over the limit of "
                    f"{MAX_GROUP_BYTES:,}; write it with row groups of about 100 rows (row_group_size=100)"
                )
            if not wanted:
                yield from ((found, Row(number + n, group, n, None, None, None, False)) for n in range(about.num_rows))
                number += about.num_rows
                continue
            place = 0
            size = _ROWS_WITH_MASK if found.mask else _ROWS
            for batch in file.iter_batches(size, [group], wanted, use_threads=False):
                for values in batch.to_pylist():
                    yield found, _row(values, found, number, group, place, extra)
                    number, place = number + 1, place + 1


def find_columns(schema: Any, shard: ShardFile, image: str | None = None) -> Columns:
    """Tell the columns of a schema. Raises DataError where none holds images, or several could, or not the given."""
    held = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    images = [name for name in held if name.lower() in _IMAGES] or [name for name in held if name.lower() not in _MASKS]
    if image is not None:
        images = [name for name in held if name == image]
    if len(images) != 1:
        what = f"several columns could hold the images ({', '.join(images[:5])})" if images else "no column of images"
        raise DataError(
            f"{shard.url}: {what} among {quoted(', '.join(schema.names), 200)}; expected one called image, of "
            "struct{bytes, path} or binary"
        )
    lower = {name.lower(): name for name in reversed(schema.names)}

    def first(names: Sequence[str]) -> str | None:
        return next((lower[name] for name in names if name in lower and lower[name] != images[0]), None)

    mask = next((name for name in held if name != images[0] and name.lower() in _MASKS), None)
    labels = first(_LABELS)
    return Columns(images[0], mask, first(_KEYS), labels, _class_names(schema.metadata or {}, labels))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field(names.index("bytes")).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(metadata: dict[bytes, bytes], labels: str | None) -> tuple[str, ...] | None:
    """Names of the numbers in the column of labels, as `datasets` writes them beside the schema."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][labels]
        while "names" not in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
    except (KeyError, ValueError, TypeError, IndexError, RecursionError):
        return None
    listed = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed else None


def _names(schema: Any, found: Columns, extra: str | None) -> list[str]:
    import pyarrow as pa

    wanted = [name for name in (found.key, found.labels, found.mask, extra) if name is not None]
    kind = schema.field(found.image).type
    if pa.types.is_struct(kind) and "path" in [kind.field(number).name for number in range(kind.num_fields)]:
        wanted.append(f"{found.image}.path")
    return wanted


def _row(values: dict[str, Any], found: Columns, number: int, group: int, place: int, extra: str | None) -> Row:
    image = values.get(found.image)
    return Row(
        number, group, place, values.get(found.key) if found.key else None,
        image.get("path") if isinstance(image, dict) else None,
        values.get(found.labels) if found.labels else None, _bytes_of(values.get(found.mask or "")) is not None,
        values.get(extra) if extra else None,
    )  # fmt: skip


def _bytes_of(value: Any) -> bytes | None:
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None


def shard_metadata(shard: ShardFile) -> dict[bytes, bytes]:
    """What stands beside the schema of a file. Raises DataError as `parquet_rows`."""
    with _parquet(shard) as file:
        return dict(file.schema_arrow.metadata or {})


@contextmanager
def _parquet(shard: ShardFile) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise DataError(f"{shard.url}: Parquet needs pyarrow: pip install 'cpn-fast[shards]'") from None
    with shard_errors(shard.url), shard.opened() as file:
        try:
            with pq.ParquetFile(file, pre_buffer=False) as parquet:
                yield parquet
        except (pa.ArrowException, OSError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{shard.url}: no Parquet file, or damaged ({reason}); fetch or write it again") from None


class _Groups:
    """The last few columns of row groups that were read, for the rows that follow; one reader at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[ShardFile, int, str], Any] = OrderedDict()
        self.begin()
        os.register_at_fork(after_in_child=self.begin)  # another thread may hold the lock when a process forks

    def begin(self) -> None:
        """Keep nothing."""
        self._lock = threading.Lock()
        self._kept.clear()

    def column(self, shard: ShardFile, group: int, name: str) -> Any:
        """The values of a column in a row group."""
        key = (shard, group, name)
        with self._lock:
            if key not in self._kept:
                with _parquet(shard) as file:
                    table = file.read_row_group(group, columns=[name], use_threads=False)
                self._kept[key] = table.column(0)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


_groups = _Groups()
