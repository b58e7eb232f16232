"""The demo data set: generated scenes in VOC layout, made on first use and kept in a cache folder.

Splits: `train` and `val` with masks, and `pretrain`, disjoint images with image labels only, for the backbone.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from cpn_fast.data.loading.parallel import folder_lock, parallel_map
from cpn_fast.data.loading.random import generator
from cpn_fast.data.sources.demo_scenes import CLASSES, Scene, SceneObject, paint_scene
from cpn_fast.data.sources.voc import VocSource
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS
from cpn_fast.files.json_file import read_json
from cpn_fast.files.palette import voc_palette

logger = logging.getLogger(__name__)

VERSION = 1
"""Changes whenever the scenes change, so that a cached set is never mistaken for another one."""

SIZES = {"train": 400, "val": 160, "pretrain": 1000}
MARKER = "demo.json"


def default_root() -> Path:
    """Where `demo:` keeps its scenes: `$CPN_CACHE/demo-VERSION`, else `~/.cache/cpn_fast/demo-VERSION`."""
    cache = os.environ.get("CPN_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "cpn_fast") / f"demo-{VERSION}"


def generate_demo(
    root: Path | None = None,
    *,
    train: int = SIZES["train"],
    val: int = SIZES["val"],
    pretrain: int = SIZES["pretrain"],
    seed: int = 0,
    processes: int | None = None,
) -> Path:
    """Write the demo set, unless it is there; a generation that was killed leaves nothing behind that counts.

    Every image depends on (seed, its id) alone, so a smaller set is the beginning of a larger one and the splits share
    no scene.

    Args:
        root: folder of the set; None = `default_root()`.
        train: images of the split `train` (with masks).
        val: images of the split `val` (with masks).
        pretrain: images of the split `pretrain` (image labels only).
        seed: of all scenes.
        processes: how many paint; None = one per available core.

    Returns:
        The folder.

    Raises:
        DataError: where the folder holds something else, or a demo set with other settings.
    """
    root = Path(root) if root is not None else default_root()
    settings = {"version": VERSION, "seed": seed, "train": train, "val": val, "pretrain": pretrain}
    root.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock(root.parent):
        if not _is_missing(root, settings):
            return root
        logger.info("generating %d demo scenes in %s", train + val + pretrain, root)
        partial_root = root.parent / f".{root.name}.partial"
        shutil.rmtree(partial_root, ignore_errors=True)
        _write_set(partial_root, settings, processes)
        partial_root.replace(root)
    return root


def _is_missing(root: Path, settings: dict[str, int]) -> bool:
    """Whether the set has yet to be written; an empty folder counts as missing."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return True
    found = _read_marker(root)
    if found != settings:
        raise DataError(
            f"{root / MARKER}: found a demo set made with {found}, expected {settings}; "
            "delete the folder or name another one (demo:PATH)"
        )
    return False


def _read_marker(root: Path) -> dict[str, int]:
    try:
        found = dict(read_json(root / MARKER, "a generated demo set"))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(
            f"{root}: expected a generated demo set or an empty folder, found no readable {MARKER}; "
            "name another folder (demo:PATH), nothing was changed"
        ) from error
    return found


def _write_set(root: Path, settings: dict[str, int], processes: int | None) -> None:
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    ids = []
    for split in SIZES:
        names = [f"{split}_{number:04d}" for number in range(settings[split])]
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        ids += names
    write = partial(_write_scene, root, settings["seed"])
    for _ in parallel_map(write, ids, processes, chunk=32):
        pass
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / MARKER).write_text(json.dumps(settings), encoding="utf-8")


def _write_scene(root: Path, seed: int, name: str) -> None:
    scene = paint_scene(generator(seed, 0, name, "demo"))
    Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
    _annotation(name, scene).write(root / "Annotations" / f"{name}.xml", encoding="utf-8")
    if not name.startswith("pretrain"):
        mask = Image.fromarray(scene.mask, mode="P")
        mask.putpalette(voc_palette().tobytes())
        mask.save(root / "SegmentationClass" / f"{name}.png")


def _annotation(name: str, scene: Scene) -> ElementTree.ElementTree:
    """VOC's annotation: one top-level object each, its badge as a `part` (VOC counts pixels from 1)."""
    top = ElementTree.Element("annotation")
    ElementTree.SubElement(top, "filename").text = f"{name}.jpg"
    size = ElementTree.SubElement(top, "size")
    height, width, depth = scene.image.shape
    for key, value in (("width", width), ("height", height), ("depth", depth)):
        ElementTree.SubElement(size, key).text = str(value)
    ElementTree.SubElement(top, "segmented").text = "0" if name.startswith("pretrain") else "1"
    for item in scene.objects:
        _add_object(top, item)
    return ElementTree.ElementTree(top)


def _add_object(top: ElementTree.Element, item: SceneObject) -> None:
    thing = ElementTree.SubElement(top, "object")
    ElementTree.SubElement(thing, "name").text = CLASSES[item.label]
    badge = ElementTree.SubElement(thing, "part")
    ElementTree.SubElement(badge, "name").text = "badge"
    for parent, box in ((thing, item.box), (badge, item.part_box)):
        frame = ElementTree.SubElement(parent, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(frame, key).text = str(value + 1)


class DemoSource(VocSource):
    """The generated set as a source; generates it when it is missing.

    A set with other sizes or another seed, written by `generate_demo`, is as good as the default one.

    Args:
        root: folder of the set; None = `default_root()`.
        max_pixels: largest image that is read.

    Raises:
        DataError: where `root` holds something else.
    """

    def __init__(self, root: Path | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        spec = "demo:" if root is None else f"demo:{root}"
        folder = Path(root) if root is not None else default_root()
        if not (folder / MARKER).is_file() or _read_marker(folder).get("version") != VERSION:
            generate_demo(folder)
        super().__init__(folder, spec, max_pixels)
