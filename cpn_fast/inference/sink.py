"""Where the masks of a labelling or a prediction go: files, or shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpn_fast.data.types import Record
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.shards.masks import ShardWriter
from cpn_fast.files.sink import Sink


def mask_sink(
    output: Path, sink: Sink, shard_size: int, settings: Mapping[str, Any], records: Iterable[Record]
) -> MaskFolder:
    """A folder of masks about to be written.

    Args:
        output: the folder.
        sink: "files", or the form of the shards.
        shard_size: masks of a shard.
        settings: everything that decides what a mask looks like, `classes` among them.
        records: all images, in their order: which shard holds an image depends on it, so a digest of it joins the
            settings of shards.
    """
    if sink == "files":
        return MaskFolder.at(output)
    about = {**settings, "sink": sink, "shard_size": shard_size, "images_blake2b": _digest(records)}
    return ShardWriter(output, output, sink, shard_size, about)


@dataclass(frozen=True)
class Ids(Iterable[str]):
    """The ids of records, made as they are asked for.

    Attributes:
        records: the images.
    """

    records: Sequence[Record]

    def __iter__(self) -> Iterator[str]:
        return (record.id for record in self.records)


def _digest(records: Iterable[Record]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps([record.id, record.labels]).encode() + b"\n")
    return digest.hexdigest()
