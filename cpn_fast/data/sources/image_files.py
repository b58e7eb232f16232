"""The images below a folder, found by the names that annotation files give them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from cpn_fast.data.sources.base import canonical
from cpn_fast.files.images import list_images
from cpn_fast.files.names import path_fault, quoted
from cpn_fast.files.regular import is_regular


class ImageFiles:
    """One listing of a folder, asked for many names.

    Args:
        root: the folder; nothing outside of it is ever given.
        apart: folders in it whose images are none of the data set's, such as masks.
    """

    def __init__(self, root: Path, apart: Iterable[str] = ()) -> None:
        self.root = root
        self._tops = frozenset(apart)
        self.all = [path for path in list_images(root) if path.relative_to(root).parts[0] not in self._tops]
        self._in_images = bool(self.all) and all(root / "images" in path.parents for path in self.all)
        self._by_path = {canonical(path.relative_to(root).as_posix()): path for path in self.all}
        self._by_path_stem = {canonical(path.relative_to(root).with_suffix("").as_posix()): path for path in self.all}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.all:
            self._by_name.setdefault(canonical(path.name), []).append(path)
            self._by_stem.setdefault(canonical(path.stem), []).append(path)

    def find(self, name: object, bases: Sequence[str] = ("", "images")) -> Path | str:
        """The image of a name: below one of the bases, else the only one that is called so anywhere below the root.

        Args:
            name: as the file says, with any slashes, also absolute within the root.
            bases: folders relative to the root, tried in order.

        Returns:
            The path, or what is wrong and what to do.
        """
        if isinstance(name, str):
            name = _relative(name, self.root)
        if fault := path_fault(name):
            return f"image {quoted(name)} {fault}; write its path relative to the folder"
        assert isinstance(name, str)
        for base in bases:
            inside = canonical(str(PurePosixPath(base) / name))
            if inside in self._by_path:
                return self._by_path[inside]
        for base in bases:
            path = self.root / base / name
            if path.suffix and PurePosixPath(base, name).parts[0] not in self._tops and is_regular(path):
                return path  # its suffix is no image's; its content decides
        return self.called(name)

    def stem(self, name: str, bases: Sequence[str]) -> Path | str:
        """The image of a name without suffix below one of the bases, else the only one; or what is wrong."""
        for base in bases:
            image = self._by_path_stem.get(canonical(str(PurePosixPath(base) / name)))
            if image is not None:
                return image
        last = canonical(PurePosixPath(name).name)
        found = self._by_stem.get(last, [])
        if len(found) == 1:
            return found[0]
        count = f"{len(found)} images are called so" if found else "no image is called so"
        return f"{count} in {self.root}, expected {quoted(name)}.jpg or another suffix; add it or remove the mask"

    def called(self, name: str) -> Path | str:
        """The only image of this file name (or this name without suffix), in whatever folder; else what is wrong."""
        last = canonical(PurePosixPath(name).name)
        found = self._by_name.get(last) or self._by_stem.get(last, [])
        if len(found) == 1:
            return found[0]
        if found:
            return f"image {quoted(name)}: {len(found)} images are called {quoted(last)}; give its path in the folder"
        return f"image {quoted(name)} is not in {self.root}; add it or remove the entry"

    def id_of(self, path: Path) -> str:
        """The image's path relative to the root without suffix, and without `images/` where all are in it."""
        relative = PurePosixPath(path.relative_to(self.root).as_posix()).with_suffix("")
        return str(relative).removeprefix("images/") if self._in_images else str(relative)


def _relative(name: str, root: Path) -> str:
    name = name.replace("\\", "/").removeprefix("./")
    if name.startswith("/"):
        for base in dict.fromkeys((os.path.abspath(root), os.path.realpath(root))):
            if name.startswith(f"{base}/"):
                return name[len(base) + 1 :]
    return name
