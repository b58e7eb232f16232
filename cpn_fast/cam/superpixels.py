"""`cpn superpixels`: the superpixel maps that a training will look for in the cache, made ahead of it."""

from __future__ import annotations

from cpn_fast.cam.superpixel_options import SuperpixelsConfig
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.superpixels.backend import version_of
from cpn_fast.data.superpixels.cache import CacheSummary, SuperpixelCache
from cpn_fast.files.errors import DataError
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.options import check_positive
from cpn_fast.training.run import labelled_records


def run_superpixels(config: SuperpixelsConfig, progress: Progress = SILENT) -> CacheSummary:
    """Make the maps that are missing.

    Args:
        config: of which images, and how.
        progress: where the bar and the result are shown.

    Returns:
        how many maps were made, and of how many segments.

    Raises:
        DataError: for a source, split or option that does not fit, an image that cannot be read, or a cache folder that
            cannot be written.
    """
    engine = config.open_engine()
    if config.workers is not None:
        check_positive(workers=config.workers)
    if config.patch.kind != "superpixel" or config.patch.superpixels != "cached":
        raise DataError("--patch grid and --superpixels online keep no superpixels: there is nothing to make ahead")
    made_by = version_of(config.patch.backend)
    source = open_source(config.data)
    records = labelled_records(source, config.split)
    cache = SuperpixelCache(source, records, config.patch, config.augment)
    summary = cache.prepare(progress is not SILENT, config.workers, engine=engine)
    counts = ", ".join(f"{count:.0f}" for count in summary.actual)
    progress.say(
        f"{cache.folder}: {summary.computed} images computed, {summary.reused} were there; {counts} segments on "
        f"average, coarse to fine, by {made_by}"
    )
    return summary
