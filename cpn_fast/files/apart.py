"""Output folders stay apart from what is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MASK_FOLDER, SOFT_FOLDER


def check_apart(output: Path, read: Iterable[Path]) -> None:
    """Refuse an output folder among the data: what is written there would replace it, or be read as data next time.

    Args:
        output: the folder or file that is about to be written.
        read: folders of which everything is data. Of a single file only its own folder counts, not what lies below.

    Raises:
        DataError: where the output is one of them, lies inside one, or its masks would.
    """
    written = [output.resolve(), *(output.resolve() / name for name in (MASK_FOLDER, SOFT_FOLDER))]
    for path in read:
        folder = path.resolve()
        inside = any(place.is_relative_to(folder) for place in written)
        if path.is_file():
            folder = folder.parent
            inside = folder in written
        if inside or any(folder.is_relative_to(place) for place in written[1:]):
            raise DataError(
                f"output {output}: lies in the data, {folder}: what is written there would replace it, or be taken for "
                "images or masks next time; give an --output outside of that folder"
            )
