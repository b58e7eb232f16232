"""Exports of tools back as masks: ours, those that tools document (built here by hand), and bad ones."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from cpn_fast.cli import main as cli
from cpn_fast.convert.command import ConvertConfig, run_convert
from cpn_fast.convert.rle_pack import unpack_region
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import JobSummary
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.segment.masks import open_masks
from tests.cpn_fast.convert import example
from tests.cpn_fast.convert.example import CLASSES, without_void

MASKS = example.masks()
FORMS = [
    ("coco", "masks"), ("coco", "polygons"), ("cvat", "masks"), ("yolo-seg", "polygons"), ("label-studio", "masks"),
    ("label-studio", "polygons"), ("voc", "masks"), ("png-rgb", "masks"), ("geojson", "polygons"),
    ("datumaro", "masks"), ("datumaro", "polygons"), ("hf", "masks"),
]  # fmt: skip
KEEP_VOID = ("voc", "png-rgb", "hf")


def back(export: Path, **options: Any) -> MaskFolder:
    summary = run_convert(ConvertConfig(export, output=export.parent / "back", to="masks", **options))
    assert isinstance(summary, JobSummary) and summary.failed == 0
    return MaskFolder.at(export.parent / "back")


def packed(folder: Path) -> Path:
    """A folder as a zip of its content."""
    path = folder.with_name("packed.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("void", ["background", "label"])
@pytest.mark.parametrize(("form", "shapes"), FORMS)
def test_every_pixel_comes_back(tmp_path: Path, form: Any, shapes: Any, void: Any) -> None:
    masks = example.write(tmp_path)
    photos, out = tmp_path / "photos", tmp_path / "out"
    run_convert(ConvertConfig(masks, form, out, shapes=shapes, void=void, images=photos))
    names = tmp_path / "out.names.csv"
    folder = back(out, void=void, images=photos, names=names if names.is_file() else None)
    assert sorted(folder.paths()) == sorted(MASKS)
    classes = folder.classes()
    assert classes is not None and sorted(classes) == sorted(CLASSES)
    table = np.array([0, *(CLASSES.index(name) + 1 for name in classes)], dtype=np.uint8)
    for name, mask in MASKS.items():
        expected = mask if void == "label" or form in KEEP_VOID else without_void(mask)
        found = np.array(Image.open(folder.mask_path(name)))
        np.testing.assert_array_equal(np.where(found == 255, 255, table[found % 255]), expected, err_msg=name)
    entries = folder.manifest().entries()
    assert entries["ring"]["labels"] == [name for name in classes if name != "void"]
    assert entries["ring"]["image"] == str(photos / "ring.png")
    # What came back can go out again.
    again = run_convert(ConvertConfig(tmp_path / "back", "coco", tmp_path / "again.json"))
    assert again.output.is_file()


def test_the_way_back_is_what_segment_train_takes(tmp_path: Path) -> None:
    """Classes in another order and without one of them: the names decide."""
    masks = example.write(tmp_path)
    photos = tmp_path / "photos"
    (photos / "labels.csv").write_text("image,labels\nring.png,cat\n", encoding="utf-8")
    (photos / "classes.txt").write_text("z\ncat\nother\nsüßer hund\n", encoding="utf-8")
    run_convert(ConvertConfig(masks, "label-studio", tmp_path / "out"))
    back(tmp_path / "out")
    source = open_source(f"folder:{photos}")
    (record,) = source.records("train")
    sample = open_masks(str(tmp_path / "back"), source).read(record)
    assert sample.mask is not None
    value_of = np.array([0, 2, 4, 1], dtype=np.uint8)  # cat, süßer hund, z among the source's classes
    np.testing.assert_array_equal(sample.mask, value_of[MASKS["ring"]])


def test_rerun_skips_and_a_changed_export_is_refused_unless_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = example.write(tmp_path)
    out, output = tmp_path / "out.json", tmp_path / "back"
    run_convert(ConvertConfig(masks, "coco", out))
    words = ["convert", str(out), "--to", "masks", "--output", str(output)]
    assert cli.main(words) == 0 and cli.main(words) == 0
    assert "0 images" in capsys.readouterr().out
    data = json.loads(out.read_text(encoding="utf-8"))
    data["annotations"] = data["annotations"][1:]
    out.write_text(json.dumps(data), encoding="utf-8")
    assert cli.main(words) == 2
    assert "export_sha256" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0


def square(x0: int, y0: int, x1: int, y1: int, shape: tuple[int, int] = (20, 30)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_coco_of_cvat_as_a_zip(tmp_path: Path) -> None:
    """`annotations/instances_default.json`, polygons and run lengths, categories from 1, a crowd, z-order by size."""
    rle = coco_mask.encode(np.asfortranarray(square(0, 0, 3, 20), dtype=np.uint8))
    counts = [int(count) for count in np.diff(np.flatnonzero(np.diff(square(10, 5, 12, 7).T.ravel())), prepend=-1)]
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}], "info": {},
        "categories": [{"id": 1, "name": "dog", "supercategory": ""}, {"id": 2, "name": "cat", "supercategory": ""}],
        "images": [{"id": 1, "width": 30, "height": 20, "file_name": "a/b.jpg", "coco_url": "", "date_captured": 0}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "iscrowd": 0, "segmentation": [[5, 2, 25, 2, 25, 15, 5, 15]]},
            {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0,
             "segmentation": {"size": [20, 30], "counts": [*counts, 600 - sum(counts)]}},
            {"id": 3, "image_id": 1, "category_id": 1, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": rle["counts"].decode()}},
        ],
    }  # fmt: skip
    folder = tmp_path / "export"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_default.json").write_text(json.dumps(content))
    masks = back(packed(folder))
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[square(0, 0, 3, 20)] = 255
    expected[square(5, 2, 25, 15)] = 2
    expected[square(10, 5, 12, 7)] = 1
    assert masks.classes() == ("dog", "cat")
    np.testing.assert_array_equal(masks.read("a/b"), expected)


def test_cvat_segmentation_mask_in_colours(tmp_path: Path) -> None:
    colours = {"cat": (176, 112, 32), "dog": (48, 112, 32)}
    picture = np.zeros((20, 30, 3), dtype=np.uint8)
    picture[square(2, 3, 9, 9)] = colours["cat"]
    picture[square(12, 3, 19, 9)] = colours["dog"]
    folder = tmp_path / "export"
    (folder / "SegmentationClass").mkdir(parents=True)
    Image.fromarray(picture).save(folder / "SegmentationClass" / "a.png")
    lines = ["# label:color_rgb:parts:actions", "dog:48,112,32::", "background:0,0,0::", "cat:176,112,32::"]
    (folder / "labelmap.txt").write_text("\n".join(lines))
    masks = back(packed(folder))
    assert masks.classes() == ("dog", "cat")
    np.testing.assert_array_equal(masks.read("a"), square(12, 3, 19, 9) * 1 + square(2, 3, 9, 9) * 2)
    # The colours are kept, so that what goes out again looks the same in the tool.
    assert "cat:176,112,32::" in (masks.root / "labelmap.txt").read_text()


NAMES = {
    "list": "names: ['cat', \"dog: \\u00fc\", it's]\n",
    "lines of a list": 'path: x\nnames:\n- cat\n- "dog: \\u00fc"\n- it\'s # a comment\nnc: 3\n',
    "indented list": "names:\n  - cat\n  - 'dog: ü'\n  - it's\n",
    "numbers": "nc: 3\nnames:\n  # comment\n  0: cat\n  1: 'dog: ü'\n  2: it's\ntrain: x\n",
    "numbers in braces": "names: {0: cat, 1: 'dog: ü', 2: it's}\n",
    "list over lines": "names: [cat,\n  'dog: ü',\n  it's]\nnc: 3\n",
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("layout", ["labels/train/a.txt", "train/labels/a.txt", "labels/a.txt"])
def test_yolo_layouts_and_forms_of_data_yaml(tmp_path: Path, layout: str, names: str) -> None:
    """As Ultralytics, Roboflow and CVAT write them; names as PyYAML reads them."""
    import yaml

    assert yaml.safe_load(NAMES[names].replace("\\u00fc", "ü"))["names"] in (
        ["cat", "dog: ü", "it's"], {0: "cat", 1: "dog: ü", 2: "it's"},
    )  # fmt: skip
    folder = tmp_path / "export"
    label = folder / layout
    image = Path(str(label).replace("labels", "images")).with_suffix(".jpg")
    for path in (label, image):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(NAMES[names], encoding="utf-8")
    Image.new("RGB", (40, 20)).save(image)
    label.write_text("2 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n1 0.5 0.5 1 0.5 1 1 .5 1.0\n")
    masks = back(folder)
    expected = square(10, 5, 30, 15, (20, 40)) * 3
    expected[square(20, 10, 40, 20, (20, 40))] = 2
    assert masks.classes() == ("cat", "dog: ü", "it's")
    np.testing.assert_array_equal(masks.read("a"), expected)


def brush(region: NDArray[np.bool_], literal: bool) -> list[int]:
    """Label Studio's packing written here from its description; runs as they come, or values one by one."""
    values = np.repeat(np.where(region, 255, 0).ravel(), 4).tolist()
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    place = 0
    while place < len(values):
        count = min(len(values) - place, 5 if literal else 200)
        if literal:
            bits += ["0", "00", f"{count - 1:03b}", *(f"{value:08b}" for value in values[place : place + count])]
        else:
            count = next((n for n in range(1, count) if values[place + n] != values[place]), count)
            bits += ["1", "10", f"{count - 1:08b}", f"{values[place]:08b}"]
        place += count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8], 2) for start in range(0, len(text), 8)]


@pytest.mark.parametrize("literal", [True, False])
def test_a_brush_of_runs_and_of_single_values(literal: bool) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 1.0):
        region = rng.random((9, 13)) < share
        np.testing.assert_array_equal(unpack_region(brush(region, literal), 9, 13), region)


def result(kind: str, label: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x", "type": kind, "from_name": "t", "to_name": "image", "original_width": 30, "original_height": 20,
            "image_rotation": 0, "value": {**value, kind: [label]}}  # fmt: skip


def test_label_studio_export(tmp_path: Path) -> None:
    """Uploads with a prefix, local files, brush over polygon, a cancelled annotation, an image without regions."""
    points = [[10, 10], [50, 10], [50, 50], [10, 50]]
    polygon = result("polygonlabels", "dog", {"points": points, "closed": True})
    stroke = result("brushlabels", "cat", {"format": "rle", "rle": brush(square(10, 5, 20, 9), True)})
    choice = {"type": "choices", "value": {"choices": ["good"]}, "from_name": "c", "to_name": "image"}
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/3/0a1b2c3d-my%20dog.jpg"},
         "annotations": [{"was_cancelled": False, "result": [choice, polygon, stroke]},
                         {"was_cancelled": True, "result": []}],
         "predictions": [{"result": [stroke]}]},
        {"id": 2, "data": {"image": "/data/local-files/?d=photos/b.png"}, "annotations": [],
         "predictions": [{"result": [stroke]}]},
        {"id": 3, "data": {"image": "https://host/some/c.png?sig=1"}, "annotations": [{"result": []}]},
    ]  # fmt: skip
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "images" / "c.png")
    masks = back(path, images=tmp_path / "images")
    assert masks.classes() == ("cat", "dog") and sorted(masks.paths()) == ["c", "my dog", "photos/b"]
    expected = square(3, 2, 15, 10) * 2
    expected[square(10, 5, 20, 9)] = 1
    np.testing.assert_array_equal(masks.read("my dog"), expected)
    np.testing.assert_array_equal(masks.read("photos/b"), square(10, 5, 20, 9))
    assert masks.read("c").shape == (3, 4) and not masks.read("c").any()


def test_datumaro_with_a_z_order_and_a_label_for_background(tmp_path: Path) -> None:
    names = ["background", "cat", "dog"]
    polygon = {"type": "polygon", "points": [0, 0, 20, 0, 20, 10, 0, 10], "label_id": 1, "z_order": 2}
    rle = coco_mask.encode(np.asfortranarray(square(0, 0, 30, 20), dtype=np.uint8))
    whole = {"type": "mask", "rle": {"size": [20, 30], "counts": rle["counts"].decode()}, "label_id": 2, "z_order": 1}
    hole = {"type": "polygon", "points": [1, 1, 3, 1, 3, 3, 1, 3], "label_id": 0, "z_order": 3}
    box = {"type": "bbox", "bbox": [0, 0, 9, 9], "label_id": 1}
    items = [{"id": "s/a", "annotations": [hole, polygon, whole, box], "image": {"path": "s/a.jpg", "size": [20, 30]}}]
    content = {"categories": {"label": {"labels": [{"name": name} for name in names]}}, "items": items}
    (tmp_path / "export" / "annotations").mkdir(parents=True)
    (tmp_path / "export" / "annotations" / "train.json").write_text(json.dumps(content))
    masks = back(tmp_path / "export")
    expected = np.full((20, 30), 2, dtype=np.uint8)
    expected[square(0, 0, 20, 10)] = 1
    expected[square(1, 1, 3, 3)] = 0
    np.testing.assert_array_equal(masks.read("s/a"), expected)


def test_geojson_of_qupath(tmp_path: Path) -> None:
    """Features as a list without a word of the image's size, in floating point, drawn by Pillow."""
    ring = [[3.4, 2.2], [25.1, 4.6], [17.9, 18.3], [6.2, 15.7], [3.4, 2.2]]
    about = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": about}
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "slide.geojson").write_text(json.dumps([feature]))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "slide.tif")
    masks = back(tmp_path / "export", images=tmp_path / "images")
    large = Image.new("L", (30 * 16, 20 * 16))
    ImageDraw.Draw(large).polygon([(x * 16 - 0.5, y * 16 - 0.5) for x, y in ring], fill=1)
    share = np.array(large, dtype=float).reshape(20, 16, 30, 16).mean(axis=(1, 3))
    found = masks.read("slide")
    assert (found[share > 0.6] == 1).all() and (found[share < 0.4] == 0).all() and 0.35 < found.mean() < 0.42


def test_hugging_face_folder_with_splits(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("validation", "b")):
        folder = tmp_path / "export" / split
        folder.mkdir(parents=True)
        Image.fromarray(square(1, 1, 3, 3).astype(np.uint8)).save(folder / f"{name}_mask.png")
        (folder / "metadata.jsonl").write_text(
            json.dumps({"file_name": f"{name}.jpg", "mask_file_name": f"{name}_mask.png"}) + "\n"
        )
    (tmp_path / "export" / "id2label.json").write_text('{"0": "background", "1": "cat"}')
    masks = back(tmp_path / "export")
    assert sorted(masks.paths()) == ["a", "b"]
    np.testing.assert_array_equal(masks.read("b"), square(1, 1, 3, 3))


def test_a_list_of_images(tmp_path: Path) -> None:
    run_convert(ConvertConfig(example.write(tmp_path), "coco", tmp_path / "out"))
    (tmp_path / "ids.txt").write_text("ring.png\n")
    assert list(back(tmp_path / "out", split=tmp_path / "ids.txt").paths()) == ["ring"]


def test_an_image_that_fails_is_named_and_the_others_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = example.write(tmp_path)
    run_convert(ConvertConfig(masks, "coco", tmp_path / "out.json"))
    Image.new("RGB", (3, 3)).save(tmp_path / "photos" / "ring.png")
    words = ["convert", str(tmp_path / "out.json"), "--to", "masks", "--output", str(tmp_path / "back")]
    words += ["--images", str(tmp_path / "photos")]
    assert cli.main(words) == 3
    entries = MaskFolder.at(tmp_path / "back").manifest().entries()
    assert entries["ring"]["status"] == "error" and "80 x 60 pixels" in entries["ring"]["error"]
    assert sum(entry["status"] == "ok" for entry in entries.values()) == len(MASKS) - 1
    assert cli.main([*words, "--allow-failures"]) == 0


def coco(**changes: Any) -> str:
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 5]]}],
    }
    return json.dumps(content | changes)


def task(**changes: Any) -> str:
    value = {"points": [[0, 0], [9, 0], [9, 9]]}
    return json.dumps([{"data": {"image": "a.jpg"}, "annotations": [{"result": [
        result("polygonlabels", "cat", value) | changes]}]}])  # fmt: skip


def stroke(numbers: Any) -> str:
    return task(type="brushlabels", value={"brushlabels": ["cat"], "rle": numbers})


def features(geometry: Any, name: Any = "cat", **image: Any) -> str:
    feature = {"geometry": geometry, "properties": {"classification": {"name": name}}}
    return json.dumps({"type": "FeatureCollection", "image": {"width": 9, "height": 9} | image, "features": [feature]})


def items(annotation: dict[str, Any], **image: Any) -> str:
    return json.dumps({
        "categories": {"label": {"labels": [{"name": "cat"}]}},
        "items": [{"id": "a", "annotations": [{"label_id": 0} | annotation], "image": {"size": [9, 9]} | image}],
    })  # fmt: skip


TRIANGLE = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9]]]}
BAD_FILES: dict[str, tuple[str, str]] = {
    "nothing": ("", r"not JSON at column"),
    "half": (coco()[:-9], r"not JSON at column"),
    "other json": ('{"a": 1}', r'JSON with the keys \["a"\]'),
    "number": ("3", "JSON with the keys"),
    "coco image outside": (coco(images=[{"id": 1, "file_name": "../a.jpg", "width": 9, "height": 9}]), "outside"),
    "coco category twice": (coco(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]), "twice"),
    "coco background": (coco(categories=[{"id": 1, "name": "background"}]), "a category called background"),
    "coco without categories": (coco(categories=[]), r"category_id 1 is not in 'categories'"),
    "coco size": (coco(images=[{"id": 1, "file_name": "a.jpg", "width": "9", "height": 9}]), "expected both in pixels"),
    "coco huge": (coco(images=[{"id": 1, "file_name": "a.jpg", "width": 10**6, "height": 10**6}]), "over the limit"),
    "coco rle": (coco(annotations=[{"id": 1, "image_id": 1, "category_id": 1,
                                    "segmentation": {"size": [9, 9], "counts": [5]}}]), "add up to 5"),
    "coco far point": (coco(annotations=[{"id": 1, "image_id": 1, "category_id": 1,
                                          "segmentation": [[0, 0, 1e9, 0, 5, 5]]}]), "a coordinate is 1000000000"),
    "studio min": (json.dumps([{"image": "a.jpg", "label": []}]), r"export as JSON \(not JSON-MIN\)"),
    "studio outside": (task().replace("a.jpg", "../../a.jpg"), "outside the folder"),
    "studio rotated": (task(image_rotation=90), "rotated by 90"),
    "studio points": (task(value={"polygonlabels": ["cat"], "points": [[0, 0], ["x", 1], [2, 2]]}), "pairs of numbers"),
    "studio nan": (task(value={"polygonlabels": ["cat"], "points": [[0, 0], [None, 1], [2, 2]]}), "is no number"),
    "studio far": (task(value={"polygonlabels": ["cat"], "points": [[0, 0], [1e300, 1], [2, 2]]}), "far outside"),
    "studio size": (task(original_width=-3), "expected both in pixels"),
    "studio empty brush": (stroke([]), "they end within the head"),
    "studio brush of text": (stroke("abc"), "no list of bytes"),
    "studio brush of large numbers": (stroke([300]), "no list of bytes"),
    "studio brush of another size": (stroke(brush(square(0, 0, 2, 2, (5, 5)), False)), "hold 100 values"),
    "studio half a brush": (stroke(brush(square(0, 0, 9, 9), False)[:12]), "they end after"),
    "studio no class": (json.dumps([{"data": {"image": "a.jpg"}, "annotations": []}]), "no class is named in it; name"),
    "geojson line": (features({"type": "LineString", "coordinates": [[0, 0]]}), "a geometry of type 'LineString'"),
    "geojson no geometry": (features(None), "a geometry of type None"),
    "geojson no class": (features(TRIANGLE, None), "a feature without class"),
    "geojson far": (features({"type": "Polygon", "coordinates": [[[0, 0], [1e9, 0], [9, 9]]]}), "far outside"),
    "geojson flat": (features({"type": "Polygon", "coordinates": [1, 2]}), "expected a polygon of pairs"),
    "geojson height": (features(TRIANGLE, height=0), "expected both in pixels"),
    "datumaro label": (items({"type": "polygon", "points": [0, 0, 5, 0, 5, 5], "label_id": 7}), "label_id 7"),
    "datumaro points": (items({"type": "polygon", "points": [0, 0, 5]}), "at least three pairs"),
    "datumaro rle": (items({"type": "mask", "rle": {"size": [9, 9], "counts": "~~"}}), "cannot be read"),
    "datumaro size": (items({"type": "caption"}, size=[9]), "expected both in pixels"),
    "datumaro labels": (json.dumps({"categories": {}, "items": []}), r"no categories\.label\.labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_json_is_one_line_that_says_what_is_wrong(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / "export.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        run_convert(ConvertConfig(path, output=tmp_path / "back", to="masks"))
    assert "export" in str(caught.value) or ("a.jpg" in str(caught.value) and "\n" not in str(caught.value))
    assert not list((tmp_path / "back").rglob("*.png"))


YAML = "names: [cat]\n"
GOOD = "0 0 0 1 0 1 1\n"
BAD_YOLO: dict[str, tuple[str, str, str]] = {
    "no names": ("nc: 1\n", GOOD, "no key `names`"),
    "names of an alias": ("names: *x\n", GOOD, "expected a list of names"),
    "names with a gap": ("names:\n  0: a\n  2: b\n", GOOD, r"the numbers \[0, 2\] are not"),
    "names twice": ("names: [a, a]\n", GOOD, "comes twice"),
    "no name": ("names: []\n", GOOD, "no class is named in it; name"),
    "names of two kinds": ("names:\n  0: a\n  - b\n", GOOD, "expected `number: name`"),
    "a box": (YAML, "0 0.5 0.5 0.2 0.2\n", "labels of boxes"),
    "an odd number": (YAML, "0 0 0 1 0 1 1 1\n", "at least three points"),
    "no such class": (YAML, "1 0 0 1 0 1 1\n", r"line 1: class '1'; expected a number from 0 to 0"),
    "a negative class": (YAML, "-1 0 0 1 0 1 1\n", "class '-1'"),
    "words": (YAML, "0 0 0 1 x 1 1\n", "a coordinate is no number"),
    "pixels": (YAML, GOOD + "0 0 0 100 0 100 50\n", r"line 2: a point of a polygon lies far outside"),
    "nan": (YAML, "0 0 0 nan 0 1 1\n", "is no number"),
}


@pytest.mark.parametrize("name", BAD_YOLO)
def test_bad_yolo_labels(tmp_path: Path, name: str) -> None:
    data, labels, message = BAD_YOLO[name]
    for folder in ("labels", "images"):
        (tmp_path / "export" / folder).mkdir(parents=True)
    (tmp_path / "export" / "data.yaml").write_text(data)
    (tmp_path / "export" / "labels" / "a.txt").write_text(labels)
    Image.new("RGB", (8, 8)).save(tmp_path / "export" / "images" / "a.png")
    with pytest.raises(DataError, match=message):
        run_convert(ConvertConfig(tmp_path / "export", output=tmp_path / "back", to="masks"))


def test_yolo_without_the_image_says_how_to_give_it(tmp_path: Path) -> None:
    (tmp_path / "export" / "labels").mkdir(parents=True)
    (tmp_path / "export" / "data.yaml").write_text(YAML)
    (tmp_path / "export" / "labels" / "a.txt").write_text(GOOD)
    with pytest.raises(DataError, match="give --images FOLDER"):
        run_convert(ConvertConfig(tmp_path / "export", output=tmp_path / "back", to="masks"))


def lying_zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "x" * 5000)
    content = bytearray(data.getvalue())
    for place in (22, content.rindex(b"PK\x01\x02") + 24):  # the unpacked size, in both heads
        content[place : place + 4] = (10).to_bytes(4, "little")
    return bytes(content)


def outside_zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("../evil.txt", "x")
    return data.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (outside_zip, r"'\.\./evil\.txt' in it is outside the folder"),
        (lying_zip, r"cannot unpack it|larger than the zip says"),
        (lambda: outside_zip()[:-30], "not UTF-8|not JSON|expected an export"),
    ],
)
def test_bad_zips(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    (tmp_path / "export.zip").write_bytes(make())
    with pytest.raises(DataError, match=message):
        run_convert(ConvertConfig(tmp_path / "export.zip", output=tmp_path / "back", to="masks"))
    assert not (tmp_path / "evil.txt").exists() and not (tmp_path / "back").exists()


def test_what_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.doc").write_text("x")
    for name, message in (("no", "no such file"), ("empty", "an empty folder"), ("other", "not known as an export")):
        with pytest.raises(DataError, match=message):
            run_convert(ConvertConfig(tmp_path / name, output=tmp_path / "back", to="masks"))
    (tmp_path / "other" / "annotations.xml").write_text("<annotations/>")
    for path in (tmp_path / "other", packed(tmp_path / "other")):
        with pytest.raises(DataError, match='"CVAT for images", which is not read as masks'):
            run_convert(ConvertConfig(path, output=tmp_path / "back", to="masks"))
    with pytest.raises(DataError, match="the export itself"):
        run_convert(ConvertConfig(tmp_path / "other", output=tmp_path / "other", to="masks"))


LINE = '{"file_name": "a.jpg", "mask_file_name": "m.png"}'
LABELS = '{"0": "background", "1": "cat"}'
BAD_FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "hf no line": ({"metadata.jsonl": "", "id2label.json": LABELS}, "no images in it"),
    "hf no json": ({"metadata.jsonl": "{", "id2label.json": LABELS}, r"metadata\.jsonl, line 1: no JSON object"),
    "hf no mask": ({"metadata.jsonl": '{"file_name": "a.jpg"}', "id2label.json": LABELS}, "is no text but NoneType"),
    "hf outside": ({"metadata.jsonl": LINE.replace("m.", "../m."), "id2label.json": LABELS}, "outside the folder"),
    "hf gone": ({"metadata.jsonl": LINE, "id2label.json": LABELS}, r"m\.png: no such file"),
    "hf twice": ({"metadata.jsonl": f"{LINE}\n{LINE}", "id2label.json": LABELS}, "of one id 'a'"),
    "hf no names": ({"metadata.jsonl": LINE}, r"id2label\.json: no such file"),
    "hf gap": ({"metadata.jsonl": LINE, "id2label.json": '{"0": "background", "2": "x"}'}, "with the numbers 0, 1"),
    "hf no background": ({"metadata.jsonl": LINE, "id2label.json": '{"0": "cat"}'}, "0 is 'cat'; expected background"),
    "hf no class": ({"metadata.jsonl": LINE, "id2label.json": '{"0": "background"}'}, "no class is named in it; name"),
    "voc no png": ({"labelmap.txt": "background:0,0,0::\na:1,1,1::"}, "no masks"),
    "voc text": ({"labelmap.txt": "background:0,0,0::\na:1,1,1::", "SegmentationClass/a.png": "x"}, "not an image"),
    "voc no background": ({"labelmap.txt": "a:1,1,1::", "SegmentationClass/a.png": "x"}, "is called background"),
    "voc no class": ({"labelmap.txt": "background:0,0,0::", "SegmentationClass/a.png": "x"}, "no class but background"),
    "voc no labelmap": ({"SegmentationClass/a.png": "x"}, "no such file; give the class names"),
    "voc colour": ({"labelmap.txt": "background:0,0,999::", "SegmentationClass/a.png": "x"}, "expected `name:r,g,b::`"),
    "names": ({"metadata.jsonl": LINE, "id2label.json": LABELS, "names.csv": "a,b\n"}, r"names\.csv, line 1: expected"),
    "names row": ({"metadata.jsonl": LINE, "id2label.json": LABELS, "names.csv": "kind,name,written\nimage,a\n"},
                  r"names\.csv, line 2: 2 columns"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders(tmp_path: Path, name: str) -> None:
    files, message = BAD_FOLDERS[name]
    for file, content in files.items():
        path = tmp_path / "export" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        run_convert(ConvertConfig(tmp_path / "export", output=tmp_path / "back", to="masks"))
    assert not list((tmp_path / "back").rglob("*.png"))
