"""Every format read back by something that is not ours: other libraries, or decoders of the published descriptions."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from skimage.draw import polygon2mask

from cpn_fast.convert.command import ConvertConfig, ConvertSummary, run_convert
from cpn_fast.files.errors import DataError
from cpn_fast.files.palette import voc_palette
from tests.cpn_fast.convert import example
from tests.cpn_fast.convert.example import CLASSES, without_void

MASKS = example.masks()
PALETTE = voc_palette()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    example.write(tmp_path)
    return tmp_path


def convert(root: Path, form: Any, **options: Any) -> Path:
    output = root / "out"
    summary = run_convert(ConvertConfig(root / "masks", form, output, images=root / "photos", **options))
    assert isinstance(summary, ConvertSummary) and summary.images == len(MASKS)
    return output


def original(root: Path, written: str) -> str:
    """The id of a name in the output, by the file that says which were changed."""
    for path in (root / "out" / "names.csv", root / "out.names.csv"):
        if path.is_file():
            for kind, name, new in csv.reader(path.read_text(encoding="utf-8").splitlines()):
                if (kind, new) == ("image", written):
                    return name
    return written


def filled(ring: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A ring of (x, y) along the pixels' edges, filled by scikit-image."""
    return polygon2mask(shape, np.asarray(ring, dtype=float)[:, ::-1] - 0.5 + 1e-5)


def check(found: dict[str, NDArray[np.uint8]], least: float = 1.0, void: bool = False) -> None:
    """Equal masks, or of a mean IoU over the classes of at least `least` in each large image."""
    assert sorted(found) == sorted(MASKS)
    for name, mask in found.items():
        expected = MASKS[name] if void else without_void(MASKS[name])
        if least == 1.0:
            np.testing.assert_array_equal(mask, expected, err_msg=name)
        elif expected.shape == example.SIZE:
            for value in set(np.unique(expected)) - {0}:
                both, either = (mask == value) & (expected == value), (mask == value) | (expected == value)
                assert both.sum() / either.sum() >= least, (name, value)


@pytest.mark.parametrize(("tolerance", "least"), [(0.0, 1.0), (0.5, 0.97)])
def test_yolo_polygons_drawn_by_scikit_image(root: Path, tolerance: float, least: float) -> None:
    output = convert(root, "yolo-seg", tolerance=tolerance, copy_images=True)
    data = yaml.safe_load((output / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == dict(enumerate(CLASSES)) and data["colors"][0] == "#800000"
    assert data["train"] == "images/train" and (output / data["train"]).is_dir()
    found = {}
    for path in (output / "labels").rglob("*.txt"):
        name = path.relative_to(output / "labels" / "train").with_suffix("").as_posix()
        # The rule of YOLO's own loader: the last /images/ of an image's path becomes /labels/.
        image = output / "images" / "train" / f"{name}.png"
        assert Path("/labels/".join(str(image).rsplit("/images/", 1))).with_suffix(".txt") == path
        width, height = Image.open(image).size
        mask = np.zeros((height, width), dtype=np.uint8)
        for line in path.read_text().splitlines():
            number, *shares = line.split()
            points = np.array(shares, dtype=float).reshape(-1, 2)
            assert len(points) >= 3 and (points >= 0).all() and (points <= 1).all()
            mask[filled(points * (width, height), mask.shape)] = int(number) + 1
        found[original(root, name)] = mask
    check(found, least)
    ring = found["ring"]
    assert ring[30, 38] == 0 and ring[30, 30] == 3  # the hole, and the island in it


@pytest.mark.parametrize(("tolerance", "least"), [(0.0, 1.0), (0.5, 0.97)])
def test_coco_polygons_drawn_by_pycocotools(root: Path, tolerance: float, least: float) -> None:
    coco = COCO(convert(root, "coco", shapes="polygons", tolerance=tolerance))
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            assert isinstance(annotation["segmentation"], list)
            region = coco.annToMask(annotation).astype(bool)
            if tolerance == 0:
                assert annotation["area"] == region.sum()
                assert annotation["bbox"] == coco_mask.toBbox(coco.annToRLE(annotation)).tolist()
            mask[region] = annotation["category_id"]
        found[Path(image["file_name"]).with_suffix("").as_posix()] = mask
    check(found, least)
    assert [each["color"] for each in coco.dataset["categories"]] == PALETTE[1:4].tolist()


def bits_of(numbers: list[int]) -> Callable[[int], int]:
    """A reader of the next n bits, as Label Studio's documentation describes its input stream."""
    bits, place = "".join(f"{number:08b}" for number in numbers), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    return read


def unpacked(numbers: list[int]) -> list[int]:
    """Label Studio's published algorithm, value by value."""
    read = bits_of(numbers)
    total, width = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        values += [read(width)] * length if repeated else [read(width) for _ in range(length)]
    return values


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_label_studio_tasks(root: Path, shapes: Any) -> None:
    output = convert(root, "label-studio", shapes=shapes, image_prefix="/data/local-files/?d=photos/")
    config = ElementTree.fromstring((root / "out.config.xml").read_text(encoding="utf-8"))
    tag = {"masks": "BrushLabels", "polygons": "PolygonLabels"}[shapes]
    (control,) = config.findall(tag)
    assert [each.get("value") for each in control] == list(CLASSES)
    assert [each.get("background") for each in control] == ["#800000", "#008000", "#808000"]
    (picture,) = config.findall("Image")
    found = {}
    for task in json.loads(output.read_text(encoding="utf-8")):
        assert task["data"][str(picture.get("value")).removeprefix("$")].startswith("/data/local-files/?d=photos/")
        name = task["data"]["mask_id"]
        mask = np.zeros(MASKS[name].shape, dtype=np.uint8)
        for result in task["predictions"][0]["result"]:
            assert (result["from_name"], result["to_name"]) == (control.get("name"), picture.get("name"))
            assert (result["original_height"], result["original_width"]) == mask.shape
            assert result["type"] == tag.lower()
            (label,) = result["value"][tag.lower()]
            if shapes == "masks":
                pixels = np.array(unpacked(result["value"]["rle"]), dtype=np.uint8).reshape(*mask.shape, 4)
                assert result["value"]["format"] == "rle" and set(np.unique(pixels)) <= {0, 255}
                region = pixels[..., 3] > 0
            else:
                region = filled(np.array(result["value"]["points"]) * mask.shape[::-1] / 100, mask.shape)
            mask[region] = CLASSES.index(label) + 1
        found[name] = mask
    check(found)
    names = [task["data"]["image"] for task in json.loads(output.read_text(encoding="utf-8"))]
    assert "/data/local-files/?d=photos/sub%20folder/void%20%C3%BC.x.png" in names


def test_voc_folder_read_by_pillow(root: Path) -> None:
    output = convert(root, "voc", copy_images=True, instances="components")
    lines = (output / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["background:0,0,0::", "cat:128,0,0::", "süßer hund:0,128,0::", "z:128,128,0::",
                         "void:224,224,192::"]  # fmt: skip
    found = {}
    for name in (output / "ImageSets" / "Segmentation" / "train.txt").read_text(encoding="utf-8").splitlines():
        image = Image.open(output / "SegmentationClass" / f"{name}.png")
        assert image.mode == "P"
        mask = np.array(image)
        np.testing.assert_array_equal(np.array(image.convert("RGB")), PALETTE[mask])
        objects = np.array(Image.open(output / "SegmentationObject" / f"{name}.png"))
        np.testing.assert_array_equal(objects == 255, mask == 255)
        for number in set(np.unique(objects)) - {0, 255}:
            assert len(np.unique(mask[objects == number])) == 1
        np.testing.assert_array_equal(objects == 0, mask == 0)
        assert Image.open(output / "JPEGImages" / f"{name}.png").size == image.size
        found[original(root, name)] = mask
    check(found, void=True)


def test_rgb_masks_are_in_the_colours_of_the_labelmap(root: Path) -> None:
    (root / "masks" / "labelmap.txt").write_text(
        "background:0,0,0::\ncat:10,20,30::\nsüßer hund:1,2,3::\nz:250,0,0::\n", encoding="utf-8"
    )
    # The masks keep their numbers and VOC's palette; the colours of the output are the labelmap's.
    output = convert(root, "png-rgb")
    colours = {(0, 0, 0): 0, (10, 20, 30): 1, (1, 2, 3): 2, (250, 0, 0): 3, (224, 224, 192): 255}
    found = {}
    for path in (output / "SegmentationClass").rglob("*.png"):
        image = Image.open(path)
        assert image.mode == "RGB"
        mask = np.array([[colours[tuple(pixel)] for pixel in row] for row in np.array(image).tolist()], dtype=np.uint8)
        name = path.relative_to(output / "SegmentationClass").with_suffix("").as_posix()
        found[original(root, name)] = mask
    check(found, void=True)


@pytest.mark.parametrize(("tolerance", "least"), [(0.0, 1.0), (0.5, 0.97)])
def test_geojson_drawn_by_scikit_image(root: Path, tolerance: float, least: float) -> None:
    output = convert(root, "geojson", tolerance=tolerance)
    found, holes = {}, 0
    for path in output.rglob("*.geojson"):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["type"] == "FeatureCollection"
        mask = np.zeros((content["image"]["height"], content["image"]["width"]), dtype=np.uint8)
        for feature in content["features"]:
            geometry, about = feature["geometry"], feature["properties"]["classification"]
            value = CLASSES.index(about["name"]) + 1
            assert about["color"] == PALETTE[value].tolist()
            parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            assert len(parts) > 1 or geometry["type"] == "Polygon"
            for outline, *inner in parts:
                assert all(ring[0] == ring[-1] and len(ring) > 3 for ring in (outline, *inner))
                region = filled(outline, mask.shape)
                for ring in inner:
                    region &= ~filled(ring, mask.shape)
                holes += len(inner)
                mask[region] = value
        found[original(root, path.relative_to(output).as_posix().removesuffix(".geojson"))] = mask
    check(found, least)
    assert holes >= 2


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_datumaro_json(root: Path, shapes: Any) -> None:
    output = convert(root, "datumaro", shapes=shapes, copy_images=True)
    content = json.loads((output / "annotations" / "default.json").read_text(encoding="utf-8"))
    categories = content["categories"]
    assert [label["name"] for label in categories["label"]["labels"]] == list(CLASSES)
    assert [(each["label_id"], each["g"]) for each in categories["mask"]["colormap"]] == [(0, 0), (1, 128), (2, 128)]
    found = {}
    for item in content["items"]:
        assert (output / "images" / "default" / item["image"]["path"]).is_file()
        mask = np.zeros(item["image"]["size"], dtype=np.uint8)
        for each in item["annotations"]:
            if shapes == "masks":
                region = coco_mask.decode(each["rle"]).astype(bool)
            else:
                region = filled(np.reshape(each["points"], (-1, 2)), mask.shape)
            mask[region] = each["label_id"] + 1
        found[original(root, item["id"])] = mask
    check(found)


def test_hugging_faces_image_folder(root: Path) -> None:
    output = convert(root, "hf", copy_images=True)
    names = json.loads((output / "id2label.json").read_text(encoding="utf-8"))
    assert names == {"0": "background", "1": "cat", "2": "süßer hund", "3": "z"}
    found = {}
    for line in (output / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        image, mask = (Image.open(output / "train" / row[key]) for key in ("file_name", "mask_file_name"))
        assert image.size == mask.size
        values = np.array(mask)
        assert row["classes"] == [names[str(value)] for value in np.unique(values) if 0 < value < 255]
        name = Path(row["mask_file_name"]).relative_to("masks").with_suffix("").as_posix()
        found[original(root, name)] = values
    check(found, void=True)


@pytest.mark.parametrize("form", ["coco", "cvat", "yolo-seg", "label-studio", "geojson", "datumaro"])
def test_void_as_a_class_of_its_own(root: Path, form: Any) -> None:
    plain = run_convert(ConvertConfig(root / "masks", form, root / "plain"))
    labelled = run_convert(ConvertConfig(root / "masks", form, root / "labelled", void="label"))
    assert isinstance(plain, ConvertSummary) and isinstance(labelled, ConvertSummary)
    assert labelled.objects > plain.objects
    (root / "masks" / "labelmap.txt").write_text("background:0,0,0::\na:1,1,1::\nvoid:2,2,2::\nc:3,3,3::\n")
    with pytest.raises(DataError, match="--void label: there is a class called 'void' already"):
        run_convert(ConvertConfig(root / "masks", form, root / "again", void="label"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": None}, "--format is missing"),
        ({"format": "hf", "shapes": "polygons"}, "--shapes polygons: hf holds masks only"),
        ({"format": "yolo-seg", "shapes": "masks"}, "--shapes masks: yolo-seg holds polygons only"),
        ({"format": "coco", "copy_images": True}, "--copy-images: coco holds no images"),
        ({"format": "voc", "copy_images": True}, "--copy-images: give the folder of the images"),
        ({"format": "coco", "tolerance": -1.0}, "--tolerance -1.0: expected a number"),
        ({"format": "coco", "tolerance": float("nan")}, "--tolerance nan: expected a number"),
        ({"format": "coco", "names": Path("names.csv")}, "--names is for the way back"),
    ],
)
def test_options_that_do_not_fit(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_convert(ConvertConfig(root / "masks", output=root / "out", **options))
    assert not (root / "out").exists()


@pytest.mark.parametrize("form", ["yolo-seg", "voc", "png-rgb", "geojson", "datumaro", "hf"])
def test_a_folder_is_written_whole_or_not_at_all(root: Path, form: Any) -> None:
    config = ConvertConfig(root / "masks", form, root / "out")
    run_convert(config)
    before = {path: path.read_bytes() for path in (root / "out").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="out: exists; give another --output"):
        run_convert(config)
    path = root / "masks" / "SegmentationClass" / "sub folder" / "void ü.x.png"
    good = path.read_bytes()
    path.write_bytes(good[:-40])
    with pytest.raises(DataError, match=r"void ü\.x\.png: cannot decode"):
        run_convert(ConvertConfig(root / "masks", form, root / "out", overwrite=True))
    assert {path: path.read_bytes() for path in (root / "out").rglob("*") if path.is_file()} == before
    path.write_bytes(good)
    (root / "out" / "of an earlier export").write_text("x")
    run_convert(ConvertConfig(root / "masks", form, root / "out", overwrite=True))
    assert {path: path.read_bytes() for path in (root / "out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in root.iterdir()) == ["masks", "out", "photos"]


def test_a_folder_of_somebody_else_is_never_replaced(root: Path) -> None:
    with pytest.raises(DataError, match="photos: a folder that `cpn convert` did not write"):
        run_convert(ConvertConfig(root / "masks", "voc", root / "photos", overwrite=True))
    assert len(list((root / "photos").rglob("*.png"))) == len(MASKS)
