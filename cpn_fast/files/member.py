"""A file that lies within another one, such as a photograph in a tar: what reads images takes it in place of a path."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath


class Member(ABC):
    """A file within another. Its text names both, for messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called within the other file, with forward slashes."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """The content. Raises DataError naming the file it lies in, itself, and what was found."""

    @property
    def suffix(self) -> str:
        """The last suffix of its name, `.jpg`."""
        return PurePosixPath(self.name).suffix

    @abstractmethod
    def __str__(self) -> str:
        """The file it lies in, and itself."""


ImageFile = Path | Member
"""What an image or a mask is read from."""


def as_image_file(path: str | ImageFile) -> ImageFile:
    """A text as a path; what is one already, as it is."""
    return Path(path) if isinstance(path, str) else path


def file_bytes(file: ImageFile) -> int:
    """The size of a file or member in bytes. Raises OSError or DataError where it is gone."""
    return file.stat().st_size if isinstance(file, Path) else len(file.read_bytes())


def beside(file: ImageFile, folder: Path) -> str:
    """A path relative to a folder, for people; a member by its own text."""
    return os.path.relpath(file, folder) if isinstance(file, Path) else str(file)
