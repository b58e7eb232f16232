"""The generated data set: its layout, what it promises about parts and bodies, and that it is whole or absent."""

from __future__ import annotations

import colorsys
import hashlib
import multiprocessing
import time
from collections import Counter
from multiprocessing.context import ForkProcess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from skimage.segmentation import slic

from cpn_fast.data.loading.random import generator
from cpn_fast.data.sources.demo import MARKER, SIZES, DemoSource, generate_demo
from cpn_fast.data.sources.demo_scenes import CLASSES, MAX_PART_SHARE, paint_scene
from cpn_fast.files.errors import DataError

SMALL = {"train": 10, "val": 6, "pretrain": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_demo(tmp_path_factory.mktemp("demo") / "set", **SMALL)


@pytest.fixture(scope="module")
def scenes():
    return [paint_scene(generator(11, 0, str(number), "demo")) for number in range(150)]


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_default_sizes_and_classes():
    assert SIZES["train"] >= 320
    assert SIZES["val"] >= 120
    assert SIZES["pretrain"] >= 500
    assert len(CLASSES) == 8


def test_labels_of_the_source_are_the_classes_in_the_masks(root):
    source = DemoSource(root)
    assert source.classes == CLASSES
    assert set(source.splits()) == {"train", "val", "pretrain"}
    assert source.spec == f"demo:{root}"
    for split in ("train", "val"):
        records = source.records(split)
        assert len(records) == SMALL[split]
        for record in records:
            sample = source.read(record, with_mask=True)
            assert sample.image.shape[:2] == sample.mask.shape
            assert tuple(np.unique(sample.mask[sample.mask > 0]) - 1) == record.labels
            assert np.array_equal(np.flatnonzero(sample.labels), record.labels)
    assert all(record.mask_path is None and record.labels for record in source.records("pretrain"))


def test_annotations_are_voc(root):
    for path in (root / "Annotations").glob("train_*.xml"):
        tree = ElementTree.parse(path).getroot()
        mask = np.asarray(Image.open(root / "SegmentationClass" / f"{path.stem}.png"))
        size = (int(tree.findtext("size/height")), int(tree.findtext("size/width")))
        assert mask.shape == size
        for item in tree.findall("object"):
            left, top, right, bottom = (int(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            inner = [int(item.findtext(f"part/bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
            assert 1 <= left <= inner[0] <= inner[2] <= right <= size[1]
            assert 1 <= top <= inner[1] <= inner[3] <= bottom <= size[0]
            window = mask[top - 1 : bottom, left - 1 : right]
            label = CLASSES.index(item.findtext("name")) + 1
            assert all(edge.any() for edge in (window == label)[[0, -1]])
            assert all(edge.any() for edge in (window == label)[:, [0, -1]].T)


def test_masks_are_palette_images(root):
    with Image.open(next((root / "SegmentationClass").iterdir())) as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]


def test_no_two_scenes_are_alike(root):
    images = [digest for name, digest in digests(root).items() if name.startswith("JPEGImages")]
    assert len(images) == len(set(images)) == sum(SMALL.values())


def test_parts_are_small_and_every_scene_has_objects(scenes):
    shares = [item.part_area / item.area for scene in scenes for item in scene.objects]
    assert min(shares) > 0
    assert max(shares) <= MAX_PART_SHARE == 0.25
    assert 0.10 < np.mean(shares) < 0.20
    counts = Counter(len(scene.objects) for scene in scenes)
    assert min(counts) == 1
    assert sum(counts[n] for n in counts if n > 1) > 0.7 * len(scenes)
    per_class = Counter(item.label for scene in scenes for item in scene.objects)
    assert min(per_class.values()) > 0.6 * sum(per_class.values()) / 8
    for scene in scenes:
        assert max(scene.image.shape) <= 160
        labels = {item.label + 1 for item in scene.objects}
        assert set(np.unique(scene.mask)) == labels | {0}
        areas = Counter()
        for item in scene.objects:
            areas[item.label + 1] += item.area
        assert all((scene.mask == label).sum() == area for label, area in areas.items())


def test_bodies_are_weakly_typical(scenes):
    """The body's hue alone names the class more often than not, yet far from always."""
    hits = []
    for scene in scenes:
        for item in scene.objects:
            body = scene.mask == item.label + 1
            others = np.ones_like(body)
            others[item.box[1] : item.box[3] + 1, item.box[0] : item.box[2] + 1] = False
            body &= ~others
            body[item.part_box[1] : item.part_box[3] + 1, item.part_box[0] : item.part_box[2] + 1] = False
            if body.sum() < 50:
                continue
            hue = colorsys.rgb_to_hsv(*np.median(scene.image[body] / 255.0, 0))[0]
            hits.append(round(hue * 8) % 8 == item.label)
    assert len(hits) > 200
    assert 0.55 < np.mean(hits) < 0.85


def test_superpixels_can_follow_the_objects(scenes):
    """Naming each superpixel by its majority class recovers the masks nearly completely."""
    hit, union = np.zeros(9), np.zeros(9)
    for scene in scenes[:12]:
        segments = slic(scene.image, n_segments=200, compactness=10.0, start_label=0)
        votes = np.zeros((segments.max() + 1, 9), int)
        np.add.at(votes, (segments, scene.mask), 1)
        best = votes.argmax(1)[segments]
        for label in range(9):
            hit[label] += ((best == label) & (scene.mask == label)).sum()
            union[label] += ((best == label) | (scene.mask == label)).sum()
    assert (hit / union).mean() > 0.9


def test_images_depend_on_seed_and_id_alone(root, tmp_path):
    larger = digests(generate_demo(tmp_path / "larger", train=12, val=6, pretrain=4))
    small = digests(root)
    images = {name for name in small if name.startswith(("JPEGImages", "Annotations", "SegmentationClass"))}
    assert all(small[name] == larger[name] for name in images)
    other = digests(generate_demo(tmp_path / "other", train=2, val=0, pretrain=0, seed=1))
    assert other["JPEGImages/train_0000.jpg"] != small["JPEGImages/train_0000.jpg"]


def test_several_processes_write_what_one_writes(tmp_path):
    sizes = {"train": 40, "val": 20, "pretrain": 10}
    one = digests(generate_demo(tmp_path / "one", **sizes, processes=1))
    two = digests(generate_demo(tmp_path / "two", **sizes, processes=2))
    assert one == two


def test_an_existing_set_is_kept(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert generate_demo(root, **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_settings_or_other_content_are_errors(root, tmp_path):
    with pytest.raises(DataError, match=r"demo\.json.*'train': 10.*'train': 11"):
        generate_demo(root, **{**SMALL, "train": 11})
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"mine.*nothing was changed"):
        DemoSource(foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    (foreign / MARKER).write_text("{torn")
    with pytest.raises(DataError, match=r"demo\.json"):
        DemoSource(foreign)


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    generate_demo(tmp_path / "empty", train=1, val=1, pretrain=1)
    assert len(DemoSource(tmp_path / "empty").records("train")) == 1


def start() -> ForkProcess:
    sizes = {"train": 20, "val": 10, "pretrain": 10, "processes": 1}
    process = multiprocessing.get_context("fork").Process(target=generate_demo, kwargs=sizes)
    process.start()
    return process


def test_a_killed_generation_is_redone_and_two_at_once_agree(tmp_path, monkeypatch):
    monkeypatch.setenv("CPN_CACHE", str(tmp_path))
    process = start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.jpg"))) < 5:
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert not any(path.name == MARKER for path in tmp_path.rglob("*"))
    both = [start(), start()]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    folders = list(tmp_path.iterdir())
    assert len(folders) == 1
    assert folders[0].name.startswith("demo-")
    whole = generate_demo(tmp_path / "whole", train=20, val=10, pretrain=10)
    assert digests(folders[0]) == digests(whole)
