"""Work on the images of a source, and that which first takes them through a network."""

from __future__ import annotations

from dataclasses import dataclass

from cpn_fast.data.types import Record, Source
from cpn_fast.files.jobs import Ready
from cpn_fast.files.member import ImageFile
from cpn_fast.files.sent_work import SentWork
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.reader import InferenceOptions


@dataclass(frozen=True, kw_only=True)
class RecordWork(SentWork[Record, Ready]):
    """What is done to each image of a source.

    Attributes:
        source: reads the images.
        mapping: the source's classes in the order of the network, or of the masks.
    """

    source: Source
    mapping: ClassMapping

    def id_of(self, item: Record) -> str:
        """The record's id."""
        return item.id

    def image_of(self, item: Record) -> ImageFile:
        """The record's image."""
        return item.image_path


@dataclass(frozen=True, kw_only=True)
class NetworkWork(RecordWork[Ready]):
    """The same, with what a network says of the image.

    Attributes:
        options: how images go through the network.
        device: on which a worker puts it, "auto", "cpu" or "cuda".
    """

    options: InferenceOptions
    device: str

    @property
    def group(self) -> int:
        """The batch size."""
        return self.options.batch_size
