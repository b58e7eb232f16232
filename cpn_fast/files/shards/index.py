"""Where every example of some shards lies: a table on disk, made once, of which nothing is held in memory."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.errors import DataError
from cpn_fast.files.member import Member
from cpn_fast.files.shards.storage import ShardFile
from cpn_fast.files.shards.tables import ParquetMember
from cpn_fast.files.shards.tars import TarMember

FORMAT = 1
"""Changes with the meaning of the tables."""

MAX_PROBLEMS = 1000
"""Most problems that are kept of one pattern."""

_SCHEMA = """
create table shards (n integer primary key, url text, size integer, stamp text);
create table examples
    (n integer primary key, id text unique, name text, shard integer, image text, mask text, about text);
create table splits (split text, k integer, n integer, primary key (split, k)) without rowid;
create table labels (name text primary key, n integer) without rowid;
create table problems (url text, message text);
create table facts (key text primary key, value text) without rowid;
"""
_CHUNK = 512


@dataclass(frozen=True)
class Example:
    """One image of a shard.

    Attributes:
        id: unique over all shards.
        image: where it lies.
        mask: where its mask lies; None without.
        about: JSON-able: of a source its labels as written (None where nobody has said), of masks their entry.
    """

    id: str
    image: Member
    mask: Member | None
    about: Any


@dataclass(frozen=True)
class Found:
    """An example as it is found in a shard, or what is wrong with it.

    Attributes:
        id: of the example.
        image: where it lies.
        mask: where its mask lies; None without.
        about: as of `Example`.
        labels: the names in it, for `ShardIndex.labels`.
        split: which it belongs to beside all; None = none.
        problem: what is wrong and what to do; "" = nothing. The other values then do not count.
    """

    id: str = ""
    image: Member | None = None
    mask: Member | None = None
    about: Any = None
    labels: tuple[str, ...] = ()
    split: str | None = None
    problem: str = ""


Scanner = Callable[[ShardFile], Iterable[Found]]
"""Looks through one shard; may raise DataError, which is a problem of that shard."""

ALL = "all"
"""The split of all examples."""


def default_index_folder() -> Path:
    """Where tables are kept: `$CPN_CACHE/shards`, else `~/.cache/cpn_fast/shards`."""
    cache = os.environ.get("CPN_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "cpn_fast") / "shards"


class ShardIndex:
    """A table of examples. Threads and processes may read it at the same time; it can be sent to another process.

    Args:
        path: the file that `index_of` wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._shards: dict[int, ShardFile] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """By its path alone."""
        return ShardIndex, (self.path,)

    @property
    def digest(self) -> str:
        """Of the shards' addresses, sizes and stamps; of how they are read too."""
        return self.path.stem

    def count(self, split: str = ALL) -> int:
        """The number of examples in a split."""
        return int(self._one("select count(*) from splits where split = ?", split)[0])

    def splits(self) -> list[str]:
        """The names of the splits, sorted, `ALL` last."""
        rows = self._connection().execute("select distinct split from splits order by split").fetchall()
        return [*(name for (name,) in rows if name != ALL), ALL]

    def labels(self) -> dict[str, str]:
        """Every name among the labels -> the id of an example that has it."""
        query = "select labels.name, id from labels join examples on labels.n = examples.n order by labels.name"
        return dict(self._connection().execute(query))

    def problems(self) -> list[tuple[str, str]]:
        """(Address, message) of what cannot be used."""
        return list(self._connection().execute("select url, message from problems"))

    def fact(self, key: str) -> Any:
        """What the scanner noted; None where it did not."""
        row = self._connection().execute("select value from facts where key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def find(self, name: str) -> Example | None:
        """The example of an id; None where there is none."""
        row = self._connection().execute(f"select {_FIELDS} from examples where id = ?", (_canonical(name),)).fetchone()
        return None if row is None else self._example(row)

    def any_mask(self) -> bool:
        """Whether any example has a mask."""
        query = "select 1 from examples where mask is not null limit 1"
        return self._connection().execute(query).fetchone() is not None

    def examples(self, split: str, places: range) -> Iterator[Example]:
        """Those at some places of a split, in the order of the places."""
        query = f"select {_FIELDS} from splits join examples on splits.n = examples.n where split = ? and k in "
        for begin in range(0, len(places), _CHUNK):
            part = places[begin : begin + _CHUNK]
            marks = ",".join("?" * len(part))
            found = self._connection().execute(f"{query}({marks}) order by k", (split, *part)).fetchall()
            yield from map(self._example, found if part.step > 0 else reversed(found))

    def _example(self, row: tuple[Any, ...]) -> Example:
        name, shard, image, mask, about = row
        where = self._shard(shard)
        held = None if mask is None else _member(where, json.loads(mask))
        return Example(name, _member(where, json.loads(image)), held, json.loads(about))

    def _shard(self, number: int) -> ShardFile:
        if number not in self._shards:
            self._shards[number] = ShardFile(*self._one("select url, size, stamp from shards where n = ?", number))
        return self._shards[number]

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._connection().execute(query, values).fetchone()
        return found

    def _connection(self) -> sqlite3.Connection:
        """One for each thread and process: SQLite's must not be carried over a fork."""
        held = getattr(self._local, "held", None)
        if held is None or held[0] != os.getpid():
            try:
                opened = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
            except sqlite3.Error as error:
                raise DataError(f"{self.path}: cannot open the index of shards ({error}); delete it") from None
            held = self._local.held = (os.getpid(), opened)
        return held[1]


_FIELDS = "name, shard, image, mask, about"


class Examples(Sequence[Example]):
    """The examples of a split as a sequence that reads its table as it is asked; a slice of it is one too."""

    def __init__(self, index: ShardIndex, split: str = ALL, places: range | None = None) -> None:
        self.table, self.split = index, split
        self.places = range(index.count(split)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Examples(self.table, self.split, self.places[place])
        number = self.places[place]
        return next(self.table.examples(self.split, range(number, number + 1)))

    def __iter__(self) -> Iterator[Example]:
        return self.table.examples(self.split, self.places)


def index_of(
    shards: Sequence[ShardFile], kind: str, scan: Scanner, folder: Path | None = None, facts: Callable[[], Any] = dict
) -> ShardIndex:
    """The table of some shards: the one on disk where it fits them, else made now.

    Args:
        shards: in the order in which their examples count.
        kind: of the scanner and its settings, part of the table's name.
        scan: looks through one shard.
        folder: of the tables; None = `default_index_folder`.
        facts: called after the scan; JSON-able values by name, kept in the table.

    Raises:
        DataError: where the table cannot be written.
    """
    folder = default_index_folder() if folder is None else folder
    key = json.dumps([FORMAT, kind, [(shard.url, shard.size, shard.stamp) for shard in shards]])
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    path = folder / f"{digest}.sqlite"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                _write(temporary, shards, scan, facts)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path}: cannot write the index of the shards ({error}); set CPN_CACHE") from error
    return ShardIndex(path)


def _write(path: Path, shards: Sequence[ShardFile], scan: Scanner, facts: Callable[[], Any]) -> None:
    with _closing(sqlite3.connect(path)) as table:
        # The file gets its name when it is whole, so nothing of it has to survive a crash.
        table.executescript(f"pragma journal_mode=off; pragma synchronous=off; begin; {_SCHEMA}")
        writer = _Writer(table)
        for number, shard in enumerate(shards):
            table.execute("insert into shards values (?, ?, ?, ?)", (number, shard.url, shard.size, shard.stamp))
            try:
                for found in scan(shard):
                    writer.add(number, shard, found)
            except DataError as error:
                writer.problem(shard, str(error).removeprefix(f"{shard.url}: "))
        values = [(key, json.dumps(value, ensure_ascii=False)) for key, value in dict(facts()).items()]
        table.executemany("insert into facts values (?, ?)", values)
        table.execute("commit")


class _closing:
    def __init__(self, table: sqlite3.Connection) -> None:
        table.isolation_level = None
        self._table = table

    def __enter__(self) -> sqlite3.Connection:
        return self._table

    def __exit__(self, *_: object) -> None:
        self._table.close()


class _Writer:
    """Rows of one table; ids that come twice are problems."""

    def __init__(self, table: sqlite3.Connection) -> None:
        self._table = table
        self._counts: dict[str, int] = {}
        self._labels: set[str] = set()
        self._number = self._problems = 0

    def add(self, shard_number: int, shard: ShardFile, found: Found) -> None:
        """One example, or its problem."""
        if found.problem or found.image is None:
            self.problem(shard, found.problem)
            return
        mask = None if found.mask is None else json.dumps(_place(found.mask))
        row = (
            self._number, _canonical(found.id), found.id, shard_number, json.dumps(_place(found.image)), mask,
            json.dumps(found.about, ensure_ascii=False),
        )  # fmt: skip
        if not self._table.execute("insert or ignore into examples values (?, ?, ?, ?, ?, ?, ?)", row).rowcount:
            other = self._table.execute(
                "select url from examples join shards on shard = shards.n where id = ?", (row[1],)
            ).fetchone()[0]
            where = "in it" if other == shard.url else f"also in {other}"
            self.problem(shard, f"{found.id!r} comes twice ({where}); expected each id once: remove one or rename it")
            return
        for split in dict.fromkeys((ALL, found.split)):
            if split is not None:
                place = self._counts[split] = self._counts.get(split, -1) + 1
                self._table.execute("insert into splits values (?, ?, ?)", (split, place, self._number))
        for name in found.labels:
            if name not in self._labels and len(self._labels) < 10 * MAX_PROBLEMS:
                self._labels.add(name)
                self._table.execute("insert into labels values (?, ?)", (name, self._number))
        self._number += 1

    def problem(self, shard: ShardFile, message: str) -> None:
        """Something that cannot be used."""
        self._problems += 1
        if self._problems <= MAX_PROBLEMS:
            self._table.execute("insert into problems values (?, ?)", (shard.url, message))


def _place(member: Member) -> list[Any]:
    if isinstance(member, TarMember):
        return [member.path, member.offset, member.size]
    assert isinstance(member, ParquetMember)
    return [member.path, member.column, member.group, member.row, member.number]


def _member(shard: ShardFile, place: list[Any]) -> Member:
    if len(place) == 3:
        return TarMember(shard, *place)
    path, column, group, row, number = place
    return ParquetMember(shard, column, group, row, number, path)


def _canonical(name: str) -> str:
    return unicodedata.normalize("NFC", name)
