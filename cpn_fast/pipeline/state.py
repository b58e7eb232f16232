"""What the pipeline knows of its stages from one call to the next: settings, inputs and outputs as digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpn_fast.config.serialise import config_from_dict
from cpn_fast.data.types import Record, Source
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.member import ImageFile, file_bytes
from cpn_fast.files.output_folder import raise_io_errors_as
from cpn_fast.files.regular import read_regular
from cpn_fast.pipeline.plan import Stage

FORMAT = 1


def digest_of(value: Any) -> str:
    """SHA-256 of JSON-able values, as hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def data_digest(source: Source, records: Sequence[Record], with_masks: bool) -> str:
    """Digest of a split: ids, labels, and sizes of the files in bytes.

    Args:
        source: of the records.
        records: the split.
        with_masks: count the ground truth too.

    Raises:
        DataError: for an image that is gone.
    """

    def size(path: ImageFile | None) -> int | None:
        if path is None:
            return None
        try:
            return file_bytes(path)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}; it was there when the split was read: put it back, or take it off the split"
            ) from error

    rows = [[r.id, r.labels, size(r.image_path), size(r.mask_path) if with_masks else None] for r in records]
    return digest_of({"classes": list(source.classes), "records": rows})


def content_digest(paths: Sequence[Path]) -> str | None:
    """Digest of files, or of all PNG and NPZ files in folders, by name and content; None where one is missing."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in (".png", ".npz"))
            if not files:
                return None
        elif path.is_file():
            files = [path]
        else:
            return None
        for file in files:
            digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(read_regular(file)).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class StageState:
    """What is recorded of a stage.

    Attributes:
        digest: of its settings and inputs.
        settings: its command's settings, for the report.
        outputs: digest of what it wrote; None while it has not ended.
        seconds: wall time over all its attempts.
        peak_memory_mib: the largest of them.
        attempts: calls, resumed ones counted.
    """

    digest: str
    settings: dict[str, Any]
    outputs: str | None = None
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    attempts: int = 0


def read_state(path: Path) -> StageState | None:
    """A stage's state, None where it was never begun. Raises DataError for a file of another version, or damaged."""
    if not path.is_file():
        return None
    content = read_json(path, "the state of a stage", "delete it to run that stage again")
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise DataError(
            f"{path}: key format: found {version!r}, expected {FORMAT}: the folder is of another version of cpn-fast, "
            "or damaged; give another --output, or delete the file to run that stage again"
        )
    try:
        return config_from_dict(StageState, content.get("stage"), str(path), "stage.")
    except DataError as error:
        raise DataError(f"{error}; delete the file to run that stage again") from error


def write_state(path: Path, state: StageState) -> None:
    """Record a stage's state in one step. Raises DataError where it cannot be written."""
    content: Mapping[str, Any] = {"format": FORMAT, "stage": asdict(state)}
    with raise_io_errors_as(path.parent, path.name):
        atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class StageResult:
    """A stage as the summary shows it.

    Attributes:
        stage: what it is.
        state: what is recorded of it.
        skipped: nothing was to be done.
        scores: what it measured, {} where it measures nothing.
    """

    stage: Stage
    state: StageState
    skipped: bool
    scores: Mapping[str, Any]
