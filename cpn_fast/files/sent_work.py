"""Work on images that another process may do than the one that keeps what comes of it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from cpn_fast.files.jobs import Entry, ImageWork, Item, Ready
from cpn_fast.files.member import ImageFile


@dataclass(frozen=True, kw_only=True)
class SentWork(ImageWork[Item, Ready]):
    """What is done to each image, in whichever process; it can be pickled, as can the entries that it gives.

    Attributes:
        resumes: whether the same command, given again, goes on where it was stopped.
    """

    resumes: ClassVar[bool] = False

    @abstractmethod
    def image_of(self, item: Item) -> ImageFile:
        """The image file of an item, for messages."""

    @property
    def group(self) -> int:
        """How many images go through the network together at most."""
        return 1

    def to_send(self) -> Self:
        """Itself without what only the process needs that keeps the results."""
        return self

    def on_worker(self) -> Self:
        """Itself ready in the process that it was sent to: its network on the device there."""
        return self

    def held(self) -> Self:
        """Itself writing nothing: what it makes is kept for `take`."""
        return self

    def take(self, entry: Entry) -> object | None:
        """What `work` has left for `store`, where `work` was called, out of its entry or not; None for nothing."""
        return None

    def store(self, entry: Entry, left: Any) -> None:
        """Keep what `take` gave elsewhere. Called in threads. Raises DataError where it cannot be kept."""
