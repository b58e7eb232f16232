from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cpn_fast.cli import main as cli
from cpn_fast.convert.command import ConvertConfig, ConvertSummary, run_convert
from cpn_fast.convert.instances import regions
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import read_labelmap, write_labelmap, write_mask
from cpn_fast.files.palette import voc_palette

CLASSES = ("cat", "süßer hund", "z")


def example_masks() -> dict[str, np.ndarray]:
    """Odd sizes, background only, void only, one pixel, everything one class, noise with void."""
    rng = np.random.default_rng(0)
    pixel = np.zeros((5, 7), dtype=np.uint8)
    pixel[4, 6] = 3
    return {
        "background": np.zeros((3, 11), dtype=np.uint8),
        "void": np.full((4, 3), 255, dtype=np.uint8),
        "pixel": pixel,
        "full": np.full((1, 1), 2, dtype=np.uint8),
        "sub folder/noise ü.x": rng.choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), (17, 23)),
        "sub folder/blocks": np.kron(rng.choice(np.array([0, 0, 1, 3], np.uint8), (5, 6)), np.ones((7, 9), np.uint8)),
    }


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    root = tmp_path / "masks"
    for name, mask in example_masks().items():
        write_mask(root / "SegmentationClass" / f"{name}.png", mask)
    (root / "SegmentationClass" / ".tmp-1-ab.png").write_bytes(b"half")
    write_labelmap(root / "labelmap.txt", CLASSES)
    return root


def to_coco(masks: Path, **options: Any) -> COCO:
    output = masks.parent / "out" / "masks.json"
    run_convert(ConvertConfig(masks, "coco", output, overwrite=True, **options))
    return COCO(output)


def drawn(coco: COCO, image: dict[str, Any]) -> np.ndarray:
    """The mask of an image, drawn by pycocotools; fails where two annotations overlap."""
    mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
        region = coco.annToMask(annotation).astype(bool)
        assert not mask[region].any() and annotation["iscrowd"] == 0
        assert annotation["area"] == region.sum() > 0
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation["bbox"] == box
        mask[region] = annotation["category_id"]
    return mask


@pytest.mark.parametrize("instances", ["class", "components"])
def test_coco_gives_every_pixel_back(masks: Path, instances: Any) -> None:
    coco = to_coco(masks, instances=instances)
    images = coco.loadImgs(coco.getImgIds())
    expected = example_masks()
    assert [image["file_name"] for image in images] == [f"{name}.jpg" for name in sorted(expected)]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image, name in zip(images, sorted(expected), strict=True):
        mask = expected[name]
        np.testing.assert_array_equal(drawn(coco, image), np.where(mask == 255, 0, mask), err_msg=name)
        if instances == "class":
            found = [a["category_id"] for a in coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))]
            assert found == sorted(set(np.unique(mask)) - {0, 255})
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))


def test_components_touch_also_over_corners_and_come_in_reading_order() -> None:
    mask = np.array([[0, 1, 0, 2], [1, 0, 0, 2], [0, 0, 0, 0], [2, 0, 255, 1]], dtype=np.uint8)
    found = [(value, np.argwhere(region).tolist()) for value, region in regions(mask, "components")]
    assert found == [(1, [[0, 1], [1, 0]]), (1, [[3, 3]]), (2, [[0, 3], [1, 3]]), (2, [[3, 0]])]


@pytest.mark.parametrize("form", ["coco", "cvat"])
def test_equal_masks_give_equal_files(masks: Path, form: Any) -> None:
    outputs = [masks.parent / name for name in ("one", "two")]
    for output, workers in zip(outputs, (1, 3), strict=True):
        run_convert(ConvertConfig(masks, form, output, workers=workers))
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert sorted(path.name for path in masks.parent.iterdir()) == ["masks", "one", "two"]


def test_our_own_source_reads_the_json(masks: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name, mask in example_masks().items():
        path = root / "images" / f"{name}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.shape[::-1]).save(path)
    output = root / "annotations" / "instances_pseudo.json"
    run_convert(ConvertConfig(masks, "coco", output, images=root / "images"))
    source = open_source(f"coco:{root}")
    assert tuple(source.classes) == CLASSES
    records = source.records("pseudo")
    assert {record.id for record in records} == set(example_masks())
    for record in records:
        mask = example_masks()[record.id]
        np.testing.assert_array_equal(source.read(record, with_mask=True).mask, np.where(mask == 255, 0, mask))


def read_zip(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        pngs = {}
        for name in archive.namelist():
            if name.endswith(".png"):
                image = Image.open(io.BytesIO(archive.read(name)))
                assert image.mode == "P"
                pngs[name] = np.array(image)
                # CVAT goes by the colours
                np.testing.assert_array_equal(np.array(image.convert("RGB")), voc_palette()[pngs[name]])
        return pngs, archive.namelist()


@pytest.mark.parametrize("instances", ["class", "components"])
def test_cvat_zip_gives_every_pixel_back(masks: Path, tmp_path: Path, instances: Any) -> None:
    output = tmp_path / "masks.zip"
    summary = run_convert(ConvertConfig(masks, "cvat", output, instances=instances))
    pngs, names = read_zip(output)
    expected = example_masks()
    assert names[:2] == ["labelmap.txt", "ImageSets/Segmentation/default.txt"] and len(names) == 2 + 2 * len(expected)
    total = 0
    for name, mask in expected.items():
        classes, objects = pngs[f"SegmentationClass/{name}.png"], pngs[f"SegmentationObject/{name}.png"]
        np.testing.assert_array_equal(classes, np.where(mask == 255, 0, mask))
        np.testing.assert_array_equal(objects > 0, classes > 0)
        for number in range(1, objects.max() + 1):
            assert len(np.unique(classes[objects == number])) == 1  # every object is there, and of one class
        total += int(objects.max())
    assert summary.objects == total
    with zipfile.ZipFile(output) as archive:
        listed = archive.read("ImageSets/Segmentation/default.txt").decode("utf-8").splitlines()
        assert listed == sorted(expected)
        archive.extractall(tmp_path / "unpacked")
    assert read_labelmap(tmp_path / "unpacked" / "labelmap.txt") == CLASSES
    lines = (tmp_path / "unpacked" / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:3] == ["background:0,0,0::", "cat:128,0,0::"]
    # What we wrote is a folder of masks again.
    again = to_coco(tmp_path / "unpacked", instances=instances)
    assert len(again.anns) == total


def test_only_what_the_manifest_calls_done(masks: Path) -> None:
    with Manifest(masks / "manifest.jsonl") as manifest:
        manifest.append({"id": "pixel", "status": "ok", "image": "photos/pixel.PNG"})
        manifest.append({"id": "full", "status": "error", "image": "photos/full.jpg"})
        manifest.append({"id": "sub folder/blocks", "status": "ok", "image": "x/blocks.jpeg"})
    coco = to_coco(masks)
    assert [image["file_name"] for image in coco.dataset["images"]] == ["pixel.PNG", "sub folder/blocks.jpeg"]
    split = masks / "split.txt"
    split.write_text("full\n")
    with pytest.raises(DataError, match=r"split\.txt, line 1: 'full' is not done by the manifest"):
        to_coco(masks, split=split)
    with Manifest(masks / "manifest.jsonl") as manifest:
        manifest.append({"id": "gone", "status": "ok"})
    with pytest.raises(DataError, match=r"no mask for 1 of 3 images, the first gone\.png"):
        to_coco(masks)


def test_split(masks: Path) -> None:
    split = masks.parent / "split.txt"
    split.write_text("void.jpg\nsub folder/noise ü.x\n", encoding="utf-8")
    coco = to_coco(masks / "SegmentationClass", split=split)
    assert [image["file_name"] for image in coco.dataset["images"]] == ["sub folder/noise ü.x.jpg", "void.jpg"]
    for text, message in (
        ("void\nvoid.jpg\n", "line 2: 'void' is already on line 1"),
        ("pixel\nno such\n", "line 2: 'no such' has no mask"),
        ("\n", "no ids"),
    ):
        split.write_text(text)
        with pytest.raises(DataError, match=message):
            to_coco(masks, split=split)


def test_classes_of_a_folder_without_labelmap(masks: Path) -> None:
    (masks / "labelmap.txt").unlink()
    with pytest.raises(DataError, match=r"labelmap\.txt: no such file; give the class names.*--classes"):
        to_coco(masks)
    (masks / "classes.txt").write_text("a\nb\nc\n")
    coco = to_coco(masks, classes=masks / "classes.txt")
    assert [category["name"] for category in coco.dataset["categories"]] == ["a", "b", "c"]


def break_rgb(masks: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(masks / "SegmentationClass" / "pixel.png")


def break_png(masks: Path) -> None:
    path = masks / "SegmentationClass" / "sub folder" / "blocks.png"
    path.write_bytes(path.read_bytes()[:-30])


def break_classes(masks: Path) -> None:
    write_labelmap(masks / "labelmap.txt", CLASSES[:2])


def break_labelmap(masks: Path) -> None:
    write_labelmap(masks / "labelmap.txt", ("cat", "dog", "cat"))


def break_folder(masks: Path) -> None:
    for path in (masks / "SegmentationClass").rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize("form", ["coco", "cvat"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_rgb, r"pixel\.png: the colour \(.*\) is no class's alone in labelmap\.txt"),
        (break_png, r"blocks\.png: cannot decode"),
        (break_classes, r"pixel\.png: mask values \[3\] are no class; expected 0 \(background\), 1\.\.2"),
        (break_labelmap, r"labelmap\.txt, line \d: 'cat' comes twice"),
        (break_folder, r"SegmentationClass: no masks"),
    ],
)
def test_bad_masks_are_named_and_leave_nothing(
    masks: Path, form: Any, damage: Callable[[Path], None], message: str
) -> None:
    damage(masks)
    output = masks.parent / "out"
    output.write_text("old")
    with pytest.raises(DataError, match=message):
        run_convert(ConvertConfig(masks, form, output, overwrite=True))
    assert output.read_text() == "old"
    assert sorted(path.name for path in masks.parent.iterdir()) == ["masks", "out"]


def test_images_must_be_there_once_and_of_the_masks_size(masks: Path) -> None:
    images = masks.parent / "photos"
    for name, mask in example_masks().items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.shape[::-1]).save(images / f"{name}.png")
    to_coco(masks, images=images)
    Image.new("RGB", (5, 7)).save(images / "pixel.png")
    with pytest.raises(DataError, match=r"masks.SegmentationClass.pixel\.png: the mask is 7 x 5 .*png 5 x 7"):
        to_coco(masks, images=images)
    Image.new("RGB", (7, 5)).save(images / "pixel.jpg")
    with pytest.raises(DataError, match=r"2 images pixel\.jpg, pixel\.png for the mask pixel\.png"):
        to_coco(masks, images=images)
    for suffix in ("jpg", "png"):
        (images / f"pixel.{suffix}").unlink()
    with pytest.raises(DataError, match=r"photos: no image for the mask pixel\.png"):
        to_coco(masks, images=images)


def test_an_existing_output_is_kept(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = masks.parent / "new folder" / "masks.json"
    words = ["convert", str(masks), "--format", "coco", "--output", str(output)]
    assert cli.main(words) == 0
    before = output.read_bytes()
    assert cli.main(words) == 2
    assert "masks.json: exists; give another --output, or --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert cli.main([*words, "--overwrite", "--instances", "components"]) == 0
    assert len(json.loads(output.read_text())["annotations"]) > len(json.loads(before)["annotations"])
    with pytest.raises(DataError, match="is a folder"):
        run_convert(ConvertConfig(masks, "coco", output.parent))


def test_disk_full_and_a_file_in_the_way(masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"labelmap\.txt/x\.json: cannot write it"):
        run_convert(ConvertConfig(masks, "coco", masks / "labelmap.txt" / "x.json"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cpn_fast.convert.cvat._add", full)
    with pytest.raises(DataError, match=r"a\.zip: cannot write it \(No space left on device\)"):
        run_convert(ConvertConfig(masks, "cvat", masks.parent / "a.zip"))
    assert [path.name for path in masks.parent.iterdir()] == ["masks"]


def test_names_that_a_format_cannot_hold_are_mapped_and_the_mapping_is_written(masks: Path) -> None:
    write_labelmap(masks / "labelmap.txt", ("cat", "a:b", "z"))
    for name in ("#1", "PIXEL", "sub folder_blocks", "what?"):
        write_mask(masks / "SegmentationClass" / f"{name}.png", np.full((2, 2), 2, np.uint8))
    output = masks.parent / "a.zip"
    summary = run_convert(ConvertConfig(masks, "cvat", output))
    assert isinstance(summary, ConvertSummary) and summary.images == len(example_masks()) + 4
    with zipfile.ZipFile(output) as archive:
        listed = archive.read("ImageSets/Segmentation/default.txt").decode("utf-8").splitlines()
        assert "a_b:0,128,0::" in archive.read("labelmap.txt").decode("utf-8").splitlines()
        assert {f"SegmentationClass/{name}.png" for name in listed} < set(archive.namelist())
    assert len({name.casefold().replace("/", "_") for name in listed}) == len(listed) == summary.images
    rows = list(csv.reader((masks.parent / "a.zip.names.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["kind", "name", "written"] and ["class", "a:b", "a_b"] in rows
    written = {name: new for kind, name, new in rows if kind == "image"}
    assert written["#1"] == "_1" and written["what?"] == "what_" and len(written) == 4 == summary.renamed - 1
    assert set(written.values()) <= set(listed)
    coco = to_coco(masks)  # names are text alone there
    assert {"#1.jpg", "PIXEL.jpg", "pixel.jpg"} < {image["file_name"] for image in coco.dataset["images"]}
    assert not (masks.parent / "out" / "masks.json.names.csv").exists()


def test_255_objects_fit_and_256_do_not(tmp_path: Path) -> None:
    mask = np.zeros((1, 511), dtype=np.uint8)
    mask[0, : 2 * 255 : 2] = 1
    write_labelmap(tmp_path / "labelmap.txt", ["cat"])
    write_mask(tmp_path / "SegmentationClass" / "a.png", mask)
    config = ConvertConfig(tmp_path, "cvat", tmp_path / "a.zip", instances="components", overwrite=True)
    assert run_convert(config).objects == 255
    assert read_zip(config.output)[0]["SegmentationObject/a.png"].max() == 255
    mask[0, 510] = 1
    write_mask(tmp_path / "SegmentationClass" / "a.png", mask)
    with pytest.raises(DataError, match=r"a\.png: more than 255 objects.*--instances class"):
        run_convert(config)


def test_254_classes_and_many_images_in_order(tmp_path: Path) -> None:
    write_labelmap(tmp_path / "labelmap.txt", [f"c{number}" for number in range(254)])
    for number in range(60):  # several rounds of the thread pool
        write_mask(tmp_path / "SegmentationClass" / f"{number:03}.png", np.full((2, 3), 254 - number, np.uint8))
    coco = to_coco(tmp_path)
    annotations = coco.dataset["annotations"]
    assert [a["category_id"] for a in annotations] == list(range(254, 194, -1))
    assert all(coco_mask.area(a["segmentation"]) == 6 for a in annotations)


@pytest.mark.parametrize("name", ["SegmentationClass/masks.json", "SegmentationClass/pixel.png", "labelmap.txt"])
def test_an_output_among_the_masks_is_refused(masks: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in masks.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"lies in the data|is read by this command"):
        run_convert(ConvertConfig(masks, "coco", masks / name, overwrite=True))
    assert {path: path.read_bytes() for path in masks.rglob("*") if path.is_file()} == before


def test_only_the_masks_of_which_a_person_said_so(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (masks / "review.csv").write_text("name,decision\npixel,rejected\nsub folder/blocks,accepted\nfull,rejected\n")
    output = tmp_path / "rejected.json"
    arguments = ["convert", str(masks), "--format", "coco", "--output", str(output), "--only", "rejected"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"2 of 6 masks are rejected by {masks / 'review.csv'}" in said
    assert "2 images, 2 objects, 3 classes; 4 images excluded, not rejected" in said
    assert [image["file_name"] for image in COCO(output).dataset["images"]] == ["full.jpg", "pixel.jpg"]
    split = tmp_path / "split.txt"
    split.write_text("full\nvoid\n")
    summary = run_convert(ConvertConfig(masks, "coco", tmp_path / "two.json", only="rejected", split=split))
    assert (summary.images, summary.left_out) == (1, 5)
    elsewhere = (masks / "review.csv").rename(tmp_path / "mine.csv")
    summary = run_convert(ConvertConfig(masks, "coco", tmp_path / "three.json", only="accepted", review=elsewhere))
    assert summary.images == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {"only": "accepted"}, r"review\.csv: no such file; decide over the masks first"),
        ("name,decision\npixel,ok\n", {"only": "accepted"}, r"review\.csv, line 2: unknown decision 'ok'"),
        ("name,decision\nnobody,accepted\n", {"only": "accepted"}, r"line 2: 'nobody' has no mask in the folder"),
        ("name,decision\npixel,accepted\n", {"only": "rejected"}, "no mask is rejected"),
        ("name,decision\npixel,accepted\n", {"review": Path("r.csv")}, "--review r.csv: say what of it to take"),
        ("name,decision\npixel,accepted\n", {"only": "accepted", "to": "masks"}, "leave it out with --to masks"),
    ],
)
def test_reviews_that_do_not_fit(masks: Path, tmp_path: Path, text: str | None, options: Any, message: str) -> None:
    if text is not None:
        (masks / "review.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        run_convert(ConvertConfig(masks, "coco", tmp_path / "out.json", **options))
    assert not (tmp_path / "out.json").exists()
