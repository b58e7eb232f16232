"""Shards as files: which ones a pattern names, and bytes of them, here or through fsspec."""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from cpn_fast.files.errors import DataError
from cpn_fast.files.names import quoted
from cpn_fast.files.regular import check_regular, open_regular

MAX_SHARDS = 100_000
"""Most shards that one pattern may name."""

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "http", "https", "memory")
"""What is opened through fsspec. A closed list: fsspec also knows addresses that run commands or chain others."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ShardFile:
    """One shard as it was when it was found.

    Attributes:
        url: a path, or an address like `s3://bucket/train-000.tar`.
        size: in bytes.
        stamp: changes with its content: the time of the last change of a file, ETag or checksum of an object.
    """

    url: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.url.rpartition("/")[2]

    def read(self, offset: int, count: int) -> bytes:
        """Some of its bytes, exactly `count`.

        Raises:
            DataError: where it cannot be read, or has changed since it was looked through.
        """
        with shard_errors(self.url):
            data = self._local(offset, count) if "://" not in self.url else self._remote(offset, count)
        if len(data) != count:
            raise DataError(
                f"{self.url}: {len(data)} bytes at {offset}, expected {count}: it has become shorter since it was "
                "looked through; run the command again"
            )
        return data

    def _local(self, offset: int, count: int) -> bytes:
        with open_regular(self.url) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, str(status.st_mtime_ns)) != (self.size, self.stamp):
                raise DataError(f"{self.url}: has changed since it was looked through; run the command again")
            return os.pread(file.fileno(), count, offset)

    def _remote(self, offset: int, count: int) -> bytes:
        system, path = _system(self.url)
        return cast(bytes, system.cat_file(path, start=offset, end=offset + count)) if count else b""

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, to be read from its beginning. Raises DataError where that fails, also in the block."""
        with shard_errors(self.url):
            if "://" not in self.url:
                with open_regular(self.url) as file:
                    yield file
            else:
                system, path = _system(self.url)
                with system.open(path, "rb") as remote:
                    yield cast(BinaryIO, io.BufferedReader(remote, 1 << 20))


@contextmanager
def shard_errors(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `DataError` of one line that names the shard."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{url}: no such shard; correct the pattern") from None
    except ImportError as error:
        protocol = url.partition("://")[0]
        hint = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}.get(protocol)
        raise DataError(
            f"{url}: needs {hint or error.name or 'a package of fsspec'}, which is not installed: pip install "
            f"'cpn-fast[shards]'{f' {hint}' if hint else ''}"
        ) from None
    except Exception as error:  # every object store brings exceptions of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{url}: cannot read it ({reason}); check the address, the network and your rights") from error


def find_shards(pattern: str, suffix: str) -> tuple[ShardFile, ...]:
    """The shards of a pattern, sorted by its braces first and by name within what a wildcard finds.

    Args:
        pattern: a path or an address with `{0000..0099}`, `{train,val}`, `*`, `?`, `**`; or a folder.
        suffix: of the shards in a folder, `.tar`.

    Raises:
        DataError: for a malformed pattern, a protocol that is not opened, more than `MAX_SHARDS`, or no shard at all.
    """
    if not pattern:
        raise DataError("a pattern of shards is empty; expected e.g. wds:shards/train-{0000..0099}.tar")
    found: dict[str, ShardFile] = {}
    for one in expand_braces(pattern):
        with shard_errors(one):
            shards = [*(_remote_shards(one, suffix) if "://" in one else _local_shards(one, suffix))]
        for shard in shards:
            if found.setdefault(shard.url, shard) is not shard:
                raise DataError(f"{pattern}: names {shard.url} twice; each shard counts once")
            if len(found) > MAX_SHARDS:
                raise DataError(f"{pattern}: more than {MAX_SHARDS:,} shards; make them larger, or name fewer")
    if not found:
        raise DataError(f"{pattern}: no shards; expected files *{suffix} by that pattern")
    return tuple(found.values())


def expand_braces(pattern: str) -> list[str]:
    """A pattern without its braces: `{8..10}` counts (with the zeros of its first number), `{a,b}` lists.

    Raises:
        DataError: for braces that are neither, are not closed, or name more than `MAX_SHARDS`.
    """
    parts: list[list[str]] = []
    place, total = 0, 1
    for match in _BRACES.finditer(pattern):
        parts += [[pattern[place : match.start()]], _choices(match[1], pattern)]
        place = match.end()
        total *= len(parts[-1])
        if total > MAX_SHARDS:
            raise DataError(f"{pattern}: its braces name more than {MAX_SHARDS:,} shards")
    parts.append([pattern[place:]])
    if any("{" in text or "}" in text for (text,) in parts[::2]):
        raise DataError(f"{pattern}: a brace that is not closed, or in another; expected {{0000..0099}} or {{a,b}}")
    return ["".join(each) for each in itertools.product(*parts)]


def _choices(inside: str, pattern: str) -> list[str]:
    if counted := _RANGE.fullmatch(inside):
        first, last = int(counted[1]), int(counted[2])
        if last < first or last - first >= MAX_SHARDS:
            raise DataError(f"{pattern}: {{{inside}}} counts down or past {MAX_SHARDS:,}; expected {{0000..0099}}")
        return [str(number).zfill(len(counted[1])) for number in range(first, last + 1)]
    if "," not in inside:
        raise DataError(f"{pattern}: {{{inside}}} neither counts nor lists; expected {{0000..0099}} or {{a,b}}")
    return inside.split(",")


def _local_shards(pattern: str, suffix: str) -> Iterator[ShardFile]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob(f"[!.]*{suffix}") if file.is_file())
    elif _GLOB.search(pattern) and not path.exists():
        found = sorted(glob.glob(str(path), recursive=True))
    else:
        found = [str(path)]
    for name in found:
        status = os.stat(name)
        check_regular(Path(name), status.st_mode)
        yield ShardFile(name, status.st_size, str(status.st_mtime_ns))


def _remote_shards(pattern: str, suffix: str) -> Iterator[ShardFile]:
    system, path = _system(pattern)
    protocol = pattern.partition("://")[0]
    if _GLOB.search(path):
        paths = sorted(system.glob(path))
    elif not path.endswith(suffix) and system.isdir(path):
        paths = sorted(system.glob(f"{path.rstrip('/')}/**/*{suffix}") or system.glob(f"{path.rstrip('/')}/*{suffix}"))
    else:
        paths = [path]
    for found in paths:
        info = system.info(found)
        if info.get("type") == "directory":
            continue
        url = found if protocol in ("http", "https") else f"{protocol}://{str(found).lstrip('/')}"
        yield ShardFile(url, int(info["size"]), str(system.checksum(found)))


def _system(url: str) -> tuple[Any, str]:
    """The file system of an address and the path in it; fsspec keeps one for each process.

    Raises:
        DataError: for a protocol that is not opened.
        ImportError: where the package that speaks it is not installed.
    """
    protocol = url.partition("://")[0]
    if protocol not in PROTOCOLS or "::" in url:
        raise DataError(f"{url}: {quoted(protocol)} is not opened; expected a path or one of {', '.join(PROTOCOLS)}")
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    return system, path
