"""Whether images have about the size that a network saw in training: it knows objects at that size."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

from cpn_fast.config.training import TRAINING_CONFIGS
from cpn_fast.data.sources.spread import spread
from cpn_fast.data.types import Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import image_size
from cpn_fast.runs.folder import RunFolder

log = logging.getLogger(__name__)

LOOKED_AT = 16
TOLERATED = 1.5
"""Networks trained at up to 439 pixels label coco_mini's 500 well; a DeepLab trained at up to 224 had 5.9% mIoU on its
val images as they are, 8.2 on the same reduced to 208."""


def warn_of_size(run: RunFolder, records: Sequence[Record], max_side: int) -> None:
    """Warn where images are more than 1.5 times as long as the longest of the run's training.

    Args:
        run: the network's, of any kind.
        records: images, of which a few are looked at; those that cannot be read are passed over.
        max_side: longer images are reduced to this long side before they are looked at by the network.
    """
    sides = []
    for record in spread(records, LOOKED_AT):
        try:
            sides.append(min(max_side, max(image_size(record.image_path))))
        except DataError:
            continue
    largest = run.config_of(TRAINING_CONFIGS[run.task]).augment.resize_range()[1]
    if sides and statistics.median(sides) > TOLERATED * largest:
        log.warning(
            "%s was trained on images of at most %d pixels, these have %d: objects are larger here than it knows them; "
            "--max-side %d reduces them to its size",
            *(run.path, largest, round(statistics.median(sides)), largest),
        )
