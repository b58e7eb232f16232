"""The classes of a data set in the order of a network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.types import VOID
from cpn_fast.files.errors import DataError


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


@dataclass(frozen=True)
class ClassMapping:
    """The classes of a data set in the order of a network's, which may know more of them.

    Attributes:
        labels: int [K_source], the network's class of each class of the source.
        num_classes: K of the network.
    """

    labels: NDArray[np.intp]
    num_classes: int

    @classmethod
    def between(cls, source: Sequence[str], network: Sequence[str]) -> ClassMapping:
        """Match classes by name. Raises DataError for a class that the network doesn't know."""
        unknown = [name for name in source if name not in network]
        if unknown:
            if len(unknown) == len(source):
                raise DataError(
                    f"the data is of other classes, {_some(source)}, than the run: it knows {_some(network)}; give the "
                    "run that was trained on these classes, or without labels the images alone (folder:PATH)"
                )
            raise DataError(
                f"the data names classes that the run was not trained on: {', '.join(unknown[:5])}"
                f"{' ...' if len(unknown) > 5 else ''}; the run knows {', '.join(network)} (folders whose names are no "
                "classes: give them as folder:PATH)"
            )
        return cls(np.array([network.index(name) for name in source], dtype=np.intp), len(network))

    def vector(self, labels: Sequence[int]) -> NDArray[np.bool_]:
        """bool [K] of the source's class indices."""
        present = np.zeros(self.num_classes, dtype=bool)
        present[self.labels[list(labels)]] = True
        return present

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A ground-truth mask (values 0..K_source and 255, as the source has checked) in the network's class values."""
        if np.array_equal(self.labels, np.arange(len(self.labels))):
            return mask
        table = np.full(256, VOID, dtype=np.uint8)
        table[0] = 0
        table[1 : len(self.labels) + 1] = self.labels + 1
        return table[mask]
