"""The members of WebDataset's tars: looked through once, with checks, without unpacking anything."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from cpn_fast.files.errors import DataError
from cpn_fast.files.member import Member
from cpn_fast.files.names import path_fault, quoted
from cpn_fast.files.shards.storage import ShardFile

MAX_MEMBER_BYTES = 1 << 30
"""Largest member that is read."""

_MAX_HEADER_BYTES = 1 << 20  # of a long name or pax record, which tarfile reads at once
_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
_KEY = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]*)")


@dataclass(frozen=True)
class TarMember(Member):
    """A file in a tar.

    Attributes:
        shard: the tar.
        path: its name there.
        offset: of its first byte.
        size: in bytes.
        content: where it was read already.
    """

    shard: ShardFile
    path: str
    offset: int
    size: int
    content: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Its name in the tar."""
        return self.path

    def read_bytes(self) -> bytes:
        """Its content, in one read."""
        return self.shard.read(self.offset, self.size) if self.content is None else self.content

    def __str__(self) -> str:
        return f"{self.shard.url}: member {self.path}"


def members(
    shard: ShardFile, max_bytes: int = MAX_MEMBER_BYTES, held: tuple[str, ...] = (), held_bytes: int = 1 << 20
) -> Iterator[TarMember]:
    """The files of a tar, in order; folders are passed over. Memory does not grow with their number.

    Args:
        shard: the tar.
        max_bytes: largest file that is allowed.
        held: endings of files whose content is read on the way, which saves a request to an object store each.
        held_bytes: largest of these.

    Raises:
        DataError: of one line, for a tar that is compressed, empty, damaged or cut off, and for a member that is no
            plain file, has a name that leads out of a folder, or is too large.
    """
    with shard.opened() as file:
        start = file.read(6)
        if start.startswith(_COMPRESSED):
            raise DataError(f"{shard.url}: is compressed, so no member can be read alone; store it as a plain .tar")
        file.seek(0)
        last = "its beginning"
        try:
            with tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header that it has seen
                    last = f"member {quoted(info.name)}"
                    if not info.isdir():
                        member = _checked(shard, info, max_bytes)
                        if member.path.endswith(held) and member.size <= held_bytes:
                            file.seek(member.offset)
                            member = replace(member, content=file.read(member.size))
                        yield member
                end = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError, UnicodeError, _TooLong) as error:
            raise DataError(f"{shard.url}: damaged or cut off after {last} ({error}); fetch it again") from None
        file.seek(end)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise DataError(
                f"{shard.url}: ends after {last} without the end mark of a tar: cut off; fetch or write it again"
            )
        if any(block):
            raise DataError(f"{shard.url}: no header at byte {end}, after {last}: damaged; fetch it again")


def key_and_ending(name: str) -> tuple[str, str] | None:
    """`cat/001.mask.png` is file `mask.png` of the example `cat/001`; None for names of no example (`.DS_Store`)."""
    match = _KEY.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


def _checked(shard: ShardFile, info: tarfile.TarInfo, max_bytes: int) -> TarMember:
    where = f"{shard.url}: member {quoted(info.name)}"
    name = info.name.removeprefix("./")
    if (fault := path_fault(name)) or "\\" in name:
        raise DataError(f"{where} {fault or 'holds a backslash'}; expected names like 000123.jpg")
    if not info.isreg() or info.sparse is not None:
        raise DataError(f"{where} is a link, a device or sparse; expected plain files")
    if info.size > max_bytes:
        raise DataError(f"{where} is of {info.size:,} bytes, over the limit of {max_bytes:,}; make it smaller")
    if info.offset_data + info.size > shard.size:
        raise DataError(
            f"{where}: {info.size:,} bytes at {info.offset_data:,}, but the file ends at {shard.size:,}: cut off; "
            "fetch it again"
        )
    return TarMember(shard, name, info.offset_data, info.size)


class _TooLong(Exception):
    pass


class _Bounded(io.RawIOBase):
    """A file of which `tarfile` reads headers alone; a header that claims to be longer is refused."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Some bytes, never many."""
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise _TooLong(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self._file.tell()
