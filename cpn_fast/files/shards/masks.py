"""Masks in shards: written one shard after the other, each in one step, and read as a folder of masks is."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.manifest import Manifest, entry_fault
from cpn_fast.files.mask_folder import MaskFiles, MaskFolder, log
from cpn_fast.files.masks import encode_mask
from cpn_fast.files.member import ImageFile
from cpn_fast.files.names import quoted
from cpn_fast.files.output_folder import MANIFEST_NAME, raise_io_errors_as
from cpn_fast.files.plan import PLAN_NAME
from cpn_fast.files.shards.index import Examples, Found, ShardIndex, index_of
from cpn_fast.files.shards.storage import ShardFile, find_shards
from cpn_fast.files.shards.tables import ParquetMember, parquet_rows, shard_metadata
from cpn_fast.files.shards.tars import TarMember, members
from cpn_fast.files.sink import Sink
from cpn_fast.files.soft_maps import SoftMaps

SUFFIXES: dict[Sink, str] = {"wds": ".tar", "parquet": ".parquet"}
SETTINGS_MEMBER = "__settings__"
"""Member of a tar with classes and settings; WebDataset's readers pass over names of this form."""

DONE, FAILED = "ok", "error"
_MAX_ENTRY_BYTES = 1 << 20
_ROWS_IN_GROUP = 100
_Entry = dict[str, Any]


@dataclass(frozen=True)
class ShardedMasks(MaskFolder):
    """Masks in `ROOT/masks-NNNNNN.tar` or `.parquet`.

    Attributes:
        kind: form of the shards.
    """

    kind: Sink = "wds"

    @classmethod
    def find_in(cls, root: Path) -> ShardedMasks | None:
        """The shards of a folder; None where it has none."""
        for kind, suffix in SUFFIXES.items():
            if next(root.glob(f"masks-*{suffix}"), None) is not None:
                return cls(root, root, kind)
        return None

    @cached_property
    def _index(self) -> ShardIndex:
        pattern = find_shards(str(self.root / f"masks-*{SUFFIXES[self.kind]}"), SUFFIXES[self.kind])
        return index_of(pattern, f"masks {self.kind}", _tar_masks if self.kind == "wds" else _table_masks)

    def _sound_index(self) -> ShardIndex:
        """The table of the masks. Raises DataError for the first shard that cannot be read."""
        for url, message in self._index.problems()[:1]:
            raise DataError(f"{url}: {message}")
        return self._index

    def manifest(self) -> Manifest:
        """What was done to each image, as the shards say it."""
        return ShardManifest(self.root / MANIFEST_NAME, self._sound_index())

    def paths(self) -> Mapping[str, ImageFile]:
        """Id -> PNG of every mask."""
        return {example.id: example.image for example in Examples(self._sound_index(), DONE)}

    def mask_path(self, image_id: str) -> ImageFile:
        """Where the mask of an image is read; where it has none, a file that is not there, for messages."""
        example = self._sound_index().find(image_id)
        held = example is not None and example.about["status"] == DONE
        return example.image if held and example is not None else self.root / f"masks-*{SUFFIXES[self.kind]}" / image_id

    def mask_file(self, image_id: str) -> Path:
        """None: masks in shards are no files."""
        raise DataError(f"{self.root}: masks in shards, of which {image_id!r} cannot be a file; use --sink files")

    def has(self, image_id: str, soft: bool = False) -> bool:
        """Whether the mask of an image is there; soft maps never are."""
        return not soft and not isinstance(self.mask_path(image_id), Path)

    def warn_if_half_done(self) -> None:
        """Warn where shards are missing, or where images in them have no mask."""
        plan = read_shard_plan(self.root)
        done = self._sound_index().count(DONE)
        total = self._index.count() if plan is None else plan.images
        if done < total:
            remedy = f"`{plan.command}`" if plan and plan.command else "label with the same settings again"
            log.warning("%s: %d of %d images have a mask; to finish it: %s", self.root, done, total, remedy)


class ShardManifest(Manifest):
    """The entries in shards, as those of a manifest; nothing is appended."""

    def __init__(self, path: Path, index: ShardIndex) -> None:
        super().__init__(path)
        self._index = index

    def entries(self) -> dict[str, dict[str, Any]]:
        """Every entry by its id."""
        return {entry["id"]: entry for entry in self.stream()}

    def stream(self) -> Iterator[dict[str, Any]]:
        """Every entry, none held."""
        return (example.about for example in Examples(self._index))


@dataclass(frozen=True)
class ShardPlan:
    """What the last command meant to do.

    Attributes:
        images: how many in all.
        size: images of a shard.
        command: resumes it.
    """

    images: int
    size: int
    command: str


def read_shard_plan(root: Path) -> ShardPlan | None:
    """The plan of a folder of shards; None where it has none. Raises DataError for one that cannot be read."""
    path = root / PLAN_NAME
    if not path.is_file():
        return None
    found = read_json(path, "the plan of the masks", "delete it; the command that makes the masks writes it again")
    match found:
        case {"images": int(images), "shard_size": int(size), "command": str(command)}:
            return ShardPlan(images, size, command)
    raise DataError(f"{path}: expected an object with images, shard_size and command; delete it")


@dataclass(frozen=True)
class ShardWriter(MaskFolder):
    """Where a job puts masks that go into shards: they are held until their shard is whole.

    Attributes:
        kind: form of the shards.
        size: images of a shard.
        about: JSON-able, written into every shard: classes and settings.
    """

    kind: Sink = "wds"
    size: int = 1000
    about: Mapping[str, Any] = field(default_factory=dict)
    _held: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def shard_path(self, number: int) -> Path:
        """The file of a shard, there or about to be written."""
        return self.root / f"masks-{number:06d}{SUFFIXES[self.kind]}"

    def encode(
        self,
        image_id: str,
        mask: NDArray[np.uint8],
        soft: SoftMaps | None = None,
        palette: NDArray[np.uint8] | None = None,
    ) -> MaskFiles:
        """The PNG of an image."""
        if soft is not None:
            raise DataError("--soft-maps: not in shards; use --sink files")
        return MaskFiles(encode_mask(mask, palette, image_id))

    def put(self, image_id: str, files: MaskFiles) -> None:
        """Hold the PNG of an image for its shard."""
        self._held[image_id] = files.mask

    def describe(self, image_id: str, image: ImageFile, mask: NDArray[np.uint8]) -> dict[str, Any]:
        """What an entry says of an image that is done."""
        height, width = mask.shape
        about = {"id": image_id, "status": DONE, "image": str(image), "mask": f"{image_id}.png"}
        return {**about, "width": width, "height": height}

    def finish(self, number: int, entries: Sequence[_Entry]) -> None:
        """Write a shard in one step.

        Args:
            number: of the shard.
            entries: of all its images, in their order.

        Raises:
            DataError: where it cannot be written.
        """
        masks = [self._held.pop(entry["id"], None) for entry in entries]
        with raise_io_errors_as(self.root, f"shard {number}"), atomic_path(self.shard_path(number)) as temporary:
            write = _write_tar if self.kind == "wds" else _write_table
            write(temporary, self.about, [*zip(entries, masks, strict=True)])

    def entries(self, numbers: Iterable[int]) -> Iterator[_Entry]:
        """The entries of some shards that are written."""
        scan = _tar_masks if self.kind == "wds" else _table_masks
        for number in numbers:
            (shard,) = find_shards(str(self.shard_path(number)), SUFFIXES[self.kind])
            yield from (found.about for found in scan(shard))


def shard_about(path: Path) -> dict[str, Any]:
    """Classes and settings that are written into a shard. Raises DataError where they cannot be read."""
    (shard,) = find_shards(str(path), path.suffix)
    text: bytes | None
    if path.suffix == SUFFIXES["parquet"]:
        text = shard_metadata(shard).get(SETTINGS_MEMBER.encode())
    else:
        text = next((member.read_bytes() for member in members(shard) if member.path == SETTINGS_MEMBER), None)
    if text is None:
        raise DataError(f"{path}: no settings in it; expected a shard that `cpn label --sink` wrote")
    return json.loads(text)


def to_json(value: Any) -> bytes:
    """JSON in UTF-8's letters, without NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _write_tar(path: Path, about: Mapping[str, Any], rows: Sequence[tuple[_Entry, bytes | None]]) -> None:
    """`__settings__`, then ID.json and ID.png of each image; the same bytes for the same masks."""
    with tarfile.open(path, "x", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, SETTINGS_MEMBER, to_json(about))
        for entry, mask in rows:
            _add(tar, f"{entry['id']}.json", to_json(entry))
            if mask is not None:
                _add(tar, f"{entry['id']}.png", mask)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _write_table(path: Path, about: Mapping[str, Any], rows: Sequence[tuple[_Entry, bytes | None]]) -> None:
    """A row for each image: id, mask as struct{bytes, path}, labels, confidence, and the entry as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = [None if mask is None else {"bytes": mask, "path": f"{entry['id']}.png"} for entry, mask in rows]
    columns = {
        "id": pa.array([entry["id"] for entry, _ in rows], pa.string()),
        "mask": pa.array(held, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "labels": pa.array([entry.get("labels") for entry, _ in rows], pa.list_(pa.string())),
        "confidence": pa.array([entry.get("confidence") for entry, _ in rows], pa.float64()),
        "entry": pa.array([to_json(entry).decode() for entry, _ in rows], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({SETTINGS_MEMBER: to_json(about)})
    pq.write_table(table, path, row_group_size=_ROWS_IN_GROUP)


def _tar_masks(shard: ShardFile) -> Iterator[Found]:
    """The entries of a tar with their masks."""
    waiting: TarMember | None = None
    for member in members(shard, held=(".json",), held_bytes=_MAX_ENTRY_BYTES):
        stem, dot, ending = member.path.rpartition(".")
        if dot and ending == "json":
            if waiting is not None:
                yield _found(waiting, waiting, None)
            waiting = member
        elif dot and ending == "png" and waiting is not None and waiting.path == f"{stem}.json":
            yield _found(waiting, member, member)
            waiting = None
        elif member.path != SETTINGS_MEMBER:
            raise DataError(f"{member}: without an entry {stem}.json before it; expected shards of `cpn label --sink`")
    if waiting is not None:
        yield _found(waiting, waiting, None)


def _found(entry: TarMember, image: TarMember, mask: TarMember | None) -> Found:
    if entry.size > _MAX_ENTRY_BYTES:
        raise DataError(f"{entry}: an entry of {entry.size:,} bytes; expected at most {_MAX_ENTRY_BYTES:,}")
    return _checked(entry.read_bytes(), image, mask is not None, str(entry))


def _table_masks(shard: ShardFile) -> Iterator[Found]:
    for columns, row in parquet_rows(shard, image="mask", extra="entry"):
        mask = ParquetMember(shard, columns.image, row.group, row.place, row.number, row.path or f"{row.number}.png")
        yield _checked(row.extra, mask, row.path is not None, f"{shard.url}: row {row.number}")


def _checked(text: Any, image: Any, has_mask: bool, where: str) -> Found:
    try:
        entry = json.loads(text)
        fault = entry_fault(entry)
    except (ValueError, TypeError, RecursionError):
        entry, fault = None, "no JSON"
    if fault or (entry["status"] == DONE) != has_mask:
        raise DataError(f"{where}: {fault or 'status and mask do not fit'} ({quoted(text)}); label it again")
    return Found(entry["id"], image, None, entry, split=DONE if has_mask else FAILED)
