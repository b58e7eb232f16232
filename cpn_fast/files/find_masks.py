"""The folder of masks that a user names."""

from __future__ import annotations

from pathlib import Path

from cpn_fast.files.mask_folder import MASK_FOLDER, MaskFolder
from cpn_fast.files.shards.masks import ShardedMasks


def find_masks(target: Path) -> MaskFolder | None:
    """The masks of a folder.

    Args:
        target: has `SegmentationClass/ID.png`, or is that folder, or holds ID.png itself, or shards of masks.

    Returns:
        None where no PNG and no shard is there.
    """
    if (sharded := ShardedMasks.find_in(target)) is not None:
        return sharded
    if (target / MASK_FOLDER).is_dir():
        found = MaskFolder.at(target)
    else:
        found = MaskFolder(target.parent if target.name == MASK_FOLDER else target, target)
    return found if found.masks.is_dir() and next(found.masks.rglob("[!.]*.[pP][nN][gG]"), None) else None
