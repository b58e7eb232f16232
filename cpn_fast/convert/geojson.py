"""Masks as one GeoJSON per image, in pixels, as QuPath reads and writes them, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.export import (
    Export,
    ExportItem,
    ReadOptions,
    checked_classes,
    checked_ring,
    checked_size,
    size_of_image,
)
from cpn_fast.convert.folder import MaskItem, class_names
from cpn_fast.convert.instances import regions
from cpn_fast.convert.polygons import Polygon, Ring, fill, polygons
from cpn_fast.convert.writer import Converted, Writer, to_json, write_file
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.names import quoted

SUFFIX = ".geojson"


class GeoJsonWriter(Writer[None]):
    """`ID.geojson`: a feature per region, with holes; x to the right and y down, in pixels."""

    has_masks = False
    has_polygons = True

    def convert(self, item: MaskItem, target: Path) -> Converted[None]:
        """Write the file of an image."""
        mask = item.read()
        features = []
        for value, region in regions(mask, self.options.instances):
            parts = [_coordinates(part) for part in polygons(region, self.options.tolerance)]
            geometry = (
                {"type": "Polygon", "coordinates": parts[0]}
                if len(parts) == 1
                else {"type": "MultiPolygon", "coordinates": parts}
            )
            name, colour = self.selection.classes[value - 1], self.selection.palette[value].tolist()
            properties = {"objectType": "annotation", "classification": {"name": name, "color": colour}}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        image = {"file_name": item.image_name, "width": mask.shape[1], "height": mask.shape[0]}
        text = to_json({"type": "FeatureCollection", "image": image, "features": features})
        write_file(target / f"{item.name}{SUFFIX}", text + "\n")
        return Converted(item, None, len(features), self.lost_void(mask))

    def write(self, target: Path, converted: Iterator[Converted[None]]) -> None:
        """Nothing holds all images; the classes are in the features."""
        for _ in converted:
            pass


def open_geojson(path: Path, options: ReadOptions) -> Export:
    """Read a GeoJSON or a folder of them. Where two objects overlap, the later one lies on top. Classes are sorted.

    Raises:
        DataError: if there is none, or one is no collection of features with a classification.
    """
    files = {path.stem: path} if path.is_file() else {}
    for file in sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else ():
        files[file.relative_to(path).as_posix()[: -len(SUFFIX)]] = file
    if not files:
        raise DataError(f"{path}: no {SUFFIX} files")
    contents = {name: _read(file) for name, file in files.items()}
    if options.classes is not None:
        classes = class_names(path, options.classes)
    else:
        names = {_name(each, files[name]) for name, content in contents.items() for each in content["features"]}
        classes = checked_classes(sorted(names), str(path))

    def item(name: str, content: dict[str, Any]) -> ExportItem:
        stored = content.get("image")
        image: dict[str, Any] = stored if isinstance(stored, dict) else {}
        image_name = image.get("file_name")

        def read() -> NDArray[np.uint8]:
            if "height" in image:
                size = checked_size((image["height"], image.get("width")), str(files[name]))
            else:
                size = size_of_image(options.image_path(name), str(files[name]))
            return _draw(content["features"], classes, size, files[name])

        return ExportItem(name, image_name if isinstance(image_name, str) else f"{name}.jpg", read)

    return Export("geojson", classes, tuple(item(*pair) for pair in contents.items()))


def _coordinates(part: Polygon) -> list[list[list[float]]]:
    """The rings, each closed by its first point; whole numbers without a point."""
    return [[_point(x, y) for x, y in (*ring.tolist(), ring[0].tolist())] for ring in (part.outline, *part.holes)]


def _point(x: float, y: float) -> list[float]:
    return [int(x) if x == int(x) else x, int(y) if y == int(y) else y]


def _read(file: Path) -> dict[str, Any]:
    content = read_json(file, "GeoJSON")
    if isinstance(content, list):  # QuPath may write the features alone
        content = {"type": "FeatureCollection", "features": content}
    if not isinstance(content, dict) or not isinstance(content.get("features"), list):
        raise DataError(f"{file}: no `features`; expected a GeoJSON FeatureCollection")
    return content


def _name(feature: Any, file: Path) -> str:
    """The class of a feature: its `classification`, else a property `class`, `label` or `name`."""
    properties = feature.get("properties") if isinstance(feature, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    found = properties.get("classification")
    candidates = [found.get("name")] if isinstance(found, dict) else []
    candidates += [properties.get(key) for key in ("class", "label", "name")]
    name = next((each for each in candidates if isinstance(each, str)), None)
    if name is None:
        raise DataError(f"{file}: a feature without class; expected properties.classification.name, as QuPath has it")
    return name


def _draw(features: list[Any], classes: tuple[str, ...], size: tuple[int, int], file: Path) -> NDArray[np.uint8]:
    mask = np.zeros(size, dtype=np.uint8)
    for feature in features:
        name = _name(feature, file)
        if name not in classes:
            raise DataError(f"{file}: the class {quoted(name)} is not in the list of classes")
        for rings in _parts(feature.get("geometry"), size, file):
            mask[fill(rings, *size)] = classes.index(name) + 1
    return mask


def _parts(geometry: Any, size: tuple[int, int], file: Path) -> list[list[Ring]]:
    """The rings of each polygon."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise DataError(f"{file}: a geometry of type {quoted(kind)}; expected Polygon or MultiPolygon")
    parts = geometry.get("coordinates")
    parts = [parts] if kind == "Polygon" else parts
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        raise DataError(f"{file}: the coordinates of a {kind} are no list of rings")
    return [[checked_ring(ring, size[1], size[0], str(file)) for ring in part] for part in parts]
