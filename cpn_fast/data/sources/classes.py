"""Images sorted into one folder per class, the layout of most classification sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cpn_fast.data.sources.base import FileSource, Problem, Scan, canonical, unknown_class, unread_masks
from cpn_fast.data.sources.folder import ALL, hash_split
from cpn_fast.data.sources.split_names import SPLIT_NAMES
from cpn_fast.data.types import Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES, list_images
from cpn_fast.files.masks import check_class_count, read_classes
from cpn_fast.files.names import class_fault, quoted
from cpn_fast.files.regular import is_regular

BACKGROUND = "background"
"""A folder of this name holds images with none of the classes."""

MASKS = "masks"
"""Folder of the ground truth, beside those of the classes."""

RESERVED = frozenset(
    ("images", "image", "imgs", "masks", "mask", "labels", "annotations", "jpegimages", "segmentationclass", "softmaps")
)
"""Folder names in lower case that are no classes."""


class ClassFolderSource(FileSource):
    """`CLASS/IMAGE`, also deeper, or `SPLIT/CLASS/IMAGE`: the folder says what is in the image.

    Folders are splits where all of them are called train, val (valid, validation) or test, and hold folders. Without
    them the splits are `train` and `val` by a hash of the id, as of a folder with a CSV. `all` holds every image. Ids
    are paths relative to the root, without suffix. Classes are those of `ROOT/classes.txt`, else the folders' names,
    sorted; a folder called background holds images with none of them. A mask is `ROOT/masks/ID.png`, where it exists.

    Args:
        root: the folder.
        spec: what `open_source` was given; None = `classes:ROOT`.
        max_pixels: largest image that is read.

    Raises:
        DataError: if it is no such folder, or a folder's name cannot be a class.
    """

    def __init__(self, root: str | Path, spec: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        super().__init__(spec or f"classes:{root}", Path(root), max_pixels)
        masks = self.root / MASKS
        self._images = [image for image in list_images(self.root) if masks not in image.parents]
        self._split_folders = _are_splits({self._parts(image)[0] for image in self._images}, self.root)
        depth = 3 if self._split_folders else 2
        shallow = next((image for image in self._images if len(self._parts(image)) < depth), None)
        if not self._images or shallow is not None:
            found = (
                "no images (by suffix) in its folders" if shallow is None else f"{shallow} lies in no class's folder"
            )
            raise DataError(
                f"{root}: {found}; expected CLASS/IMAGE or SPLIT/CLASS/IMAGE; images without labels are folder:{root}"
            )
        names = sorted({self._class_of(image) for image in self._images} - {BACKGROUND})
        for name in names:
            if fault := class_fault(name):
                raise DataError(f"{root}: the folder {quoted(name)} {fault}; rename it, it is the name of a class")
        listed = self.root / "classes.txt"
        self._classes = read_classes(listed) if listed.exists() else tuple(names)
        check_class_count(self._classes, str(root))

    @property
    def description(self) -> str:
        """The layout."""
        return "a folder of images per class"

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes: those of `classes.txt`, else the folders' names, sorted."""
        return self._classes

    def splits(self) -> tuple[str, ...]:
        """The names of the splits that hold an image, `all` last."""
        return (*sorted({self._split_of(image) for image in self._images}), ALL)

    def _scan(self, split: str) -> Scan:
        problems: list[Problem] = []
        number_of = {canonical(name): number for number, name in enumerate(self._classes)}
        records: dict[str, Record] = {}
        for image in self._images:
            name, key = self._class_of(image), self._id(image)
            if name != BACKGROUND and canonical(name) not in number_of:
                problems.append(Problem(image, unknown_class(name, self._classes)))
            elif canonical(key) in records:
                other = records[canonical(key)].image_path
                problems.append(Problem(image, f"the same id {key!r} as {other}; rename or remove one"))
            elif split in (ALL, self._split_of(image)):
                labels = () if name == BACKGROUND else (number_of[canonical(name)],)
                mask = self.root / MASKS / f"{key}.png"
                records[canonical(key)] = Record(key, image, labels, mask if is_regular(mask) else None)
        found = tuple(records[key] for key in sorted(records))
        return Scan(found, tuple(problems), warnings=unread_masks(self.root / MASKS, found))

    def _parts(self, image: Path) -> tuple[str, ...]:
        return image.relative_to(self.root).parts

    def _class_of(self, image: Path) -> str:
        return self._parts(image)[1 if self._split_folders else 0]

    def _split_of(self, image: Path) -> str:
        return SPLIT_NAMES[self._parts(image)[0].lower()] if self._split_folders else hash_split(self._id(image))

    def _id(self, image: Path) -> str:
        return str(PurePosixPath(image.relative_to(self.root).as_posix()).with_suffix(""))


def class_folders(root: Path) -> tuple[str, ...]:
    """The names of the class folders where a root holds nothing but images sorted into them, else ().

    One folder alone could be anything. The images' own folders are looked into until one image is found.
    """
    if any(_is_image(entry) for entry in _entries(root)):
        return ()
    tops = [entry.name for entry in _folders(root) if entry.name != MASKS and _has_image(Path(entry.path))]
    if _are_splits(set(tops), root):
        inner = [root / top for top in tops]
        if any(_is_image(entry) for folder in inner for entry in _entries(folder)):
            return ()
        tops = sorted({entry.name for folder in inner for entry in _folders(folder) if _has_image(Path(entry.path))})
    names = [name for name in tops if name.lower() not in RESERVED]
    return tuple(names) if len(names) == len(tops) >= 2 else ()


def _are_splits(names: set[str], root: Path) -> bool:
    """Whether the folders of a root are splits: all of a split's name, and with folders of images in them."""
    return bool(names) and all(
        name.lower() in SPLIT_NAMES and any(_has_image(Path(entry.path)) for entry in _folders(root / name))
        for name in names
    )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in _entries(folder) if entry.is_dir()) if folder.is_dir() else iter(())


def _is_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.is_dir()


def _has_image(folder: Path) -> bool:
    for _, subfolders, names in os.walk(folder):
        if any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".") for name in names):
            return True
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return False
