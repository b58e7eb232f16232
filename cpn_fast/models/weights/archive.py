"""Files of `torch.save` from strangers: their sizes, before and after torch reads them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import open_regular


def check_archive(path: Path) -> None:
    """Look through the directory of a zip of `torch.save`; another file is left to torch.

    Args:
        path: the file; it may be missing.

    Raises:
        DataError: for records that are compressed or larger than the file, for which torch would take memory.
    """
    try:
        with open_regular(path) as file:
            if file.read(2) != b"PK":
                return
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # torch says what is wrong
    claimed, held = sum(record.file_size for record in records), path.stat().st_size
    if any(record.compress_type != zipfile.ZIP_STORED for record in records) or claimed > held:
        raise DataError(
            f"{path}: its records claim {claimed:,} bytes in a file of {held:,}, or are compressed, as torch never "
            "writes them; expected the file of torch.save: not opened"
        )


def check_sizes(state: Mapping[str, Tensor], path: Path) -> None:
    """Check that tensors hold no more values than the file has bytes for.

    A tensor may name the same bytes again and again (stride 0), and be terabytes large once something is done with it.

    Raises:
        DataError: naming the first tensor of which that is so.
    """
    size, storages = path.stat().st_size, dict[int, int]()
    for key, value in state.items():
        held = 0 if value.is_sparse or value.is_meta else value.untyped_storage().nbytes()
        storages[value.untyped_storage().data_ptr() if held else 0] = held
        if value.numel() * value.element_size() > held or sum(storages.values()) > size:
            raise DataError(
                f"{path}: {key} has the shape {list(value.shape)}, for which the file has no bytes; damaged or made up"
            )
