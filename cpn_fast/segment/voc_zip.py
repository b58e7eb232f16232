"""Masks packed as PASCAL VOC's evaluation server wants them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from cpn_fast.data.sources.voc import VOC_CLASSES
from cpn_fast.files.atomic import atomic_path
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.output_folder import MANIFEST_NAME, raise_io_errors_as

FOLDER = "results/VOC2012/Segmentation/comp5_test_cls"


def check_voc_classes(classes: Sequence[str]) -> None:
    """Raise DataError unless these are VOC's 20 classes in the order of their mask values."""
    if tuple(classes) != VOC_CLASSES:
        raise DataError(
            f"--voc-zip: the run's classes are {', '.join(classes)}; the server's mask values mean "
            f"{', '.join(VOC_CLASSES)} in this order: leave the option out, or train on VOC's classes"
        )


def write_voc_zip(path: Path, output: Path, ids: Sequence[str]) -> None:
    """Pack the masks of exactly these images, in one step; the same masks give the same bytes.

    Args:
        path: the zip.
        output: folder of the predicted masks.
        ids: all images of the split.

    Raises:
        DataError: where a mask is missing or the zip cannot be written.
    """
    folder = MaskFolder.at(output)
    done = folder.manifest().done()
    missing = [name for name in ids if name not in done or not folder.has(name)]
    if missing:
        raise DataError(
            f"{path} is not written: {len(missing)} of {len(ids)} images have no mask in {folder.masks}, the "
            f"first {missing[0]}; fix what {output / MANIFEST_NAME} says of them and rerun the command"
        )
    with (
        raise_io_errors_as(path, "the zip"),
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive,  # PNGs are compressed already
    ):
        for name in ids:
            archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}.png"), folder.mask_path(name).read_bytes())
