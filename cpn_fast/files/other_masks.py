"""Masks in another format than PNG: they are not read, which is said instead of finding none."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path, PurePosixPath

from cpn_fast.files.images import images_below

_LOSSY = (".jpg", ".jpeg")


def other_masks(folder: Path, ids: Container[str] | None = None) -> str:
    """What lies in a folder of masks that is no PNG, and what to do about it; "" where there is nothing.

    Args:
        folder: of masks; it may be missing.
        ids: of the images without a mask, paths below the folder without suffix; None = any file counts.
    """
    if not folder.is_dir():
        return ""
    others = (PurePosixPath(name) for name in images_below(folder) if not name.lower().endswith(".png"))
    found = sorted(path for path in others if ids is None or str(path.with_suffix("")) in ids)
    if not found:
        return ""
    lossy = [path for path in found if path.suffix.lower() in _LOSSY]
    remedy = (
        "JPEG changes the class numbers, so these are lost: export the masks again as PNG"
        if lossy
        else "save them as PNG with their numbers unchanged"
    )
    return f"{len(found)} masks in {folder} are no PNG and are not read, such as {(lossy or found)[0].name}; {remedy}"
