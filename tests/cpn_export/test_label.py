"""`cpn-label`: the program around the network, with a hand-written graph; and without torch, against `cpn label`."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from cpn_export.label import LabelOnnxConfig, main, run_label_onnx
from cpn_export.runtime import OnnxLabeller, label_rows
from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import locked
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import read_labelmap, read_mask
from cpn_fast.files.palette import voc_palette
from cpn_fast.files.photos import find_photos, with_labels
from tests.cpn_export.conftest import TOY_GRAPH


@pytest.fixture(scope="module")
def model(write_toy_model, tmp_path_factory):
    return write_toy_model(tmp_path_factory.mktemp("toy") / "toy model.onnx")


@pytest.fixture
def photos(tmp_path):
    """Seven images of three sizes; the left third of each is red."""
    root = tmp_path / "photos"
    sizes = [(20, 30), (20, 30), (31, 17), (20, 30), (31, 17), (100, 40), (20, 30)]
    for index, (height, width) in enumerate(sizes):
        image = np.zeros((height, width, 3), np.uint8)
        image[:, : width // 3, 0] = 255
        path = root / ("ünter ordner" if index % 2 else "") / f"bild {index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def masks(output, num_classes=2):
    root = output / "SegmentationClass"
    return {
        path.relative_to(root).with_suffix("").as_posix(): read_mask(path, num_classes) for path in root.rglob("*.png")
    }


def entries(output):
    return Manifest(output / "manifest.jsonl").entries()


def test_masks_labelmap_and_manifest(model, photos, tmp_path):
    summary = run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out"))
    assert (summary.written, summary.skipped, summary.failed) == (7, 0, 0)
    found = masks(tmp_path / "out")
    assert sorted(found) == [*(f"bild {i}" for i in (0, 2, 4, 6)), *(f"ünter ordner/bild {i}" for i in (1, 3, 5))]
    for name, mask in found.items():
        image = np.asarray(Image.open(photos / f"{name}.png"))
        assert mask.shape == image.shape[:2]
        if max(mask.shape) <= 64:
            np.testing.assert_array_equal(mask, image[:, :, 0] > 128)
    assert read_labelmap(tmp_path / "out" / "labelmap.txt") == ("cat", "dög")
    with Image.open(tmp_path / "out" / "SegmentationClass" / "bild 0.png") as png:
        assert png.mode == "P"
        assert png.getpalette()[:9] == voc_palette()[:3].ravel().tolist()
    entry = entries(tmp_path / "out")["bild 0"]
    assert (entry["status"], entry["width"], entry["height"]) == ("ok", 30, 20)
    assert (entry["labels"], entry["labels_from"]) == (["cat"], "scores")  # 0.7 is above the threshold, 0.2 is not


def test_long_image_is_reduced_and_its_mask_enlarged_back(model, photos, tmp_path, monkeypatch):
    seen = []
    call = OnnxLabeller.__call__

    def spy(self, images, labels, with_maps=False):
        seen.append(images.shape)
        return call(self, images, labels, with_maps)

    monkeypatch.setattr(OnnxLabeller, "__call__", spy)
    long = photos / "ünter ordner" / "bild 5.png"
    run_label_onnx(LabelOnnxConfig(model, (long,), tmp_path / "by model"))
    run_label_onnx(LabelOnnxConfig(model, (long,), tmp_path / "by option", max_side=50))
    assert seen == [(1, 64, 26, 3), (1, 50, 20, 3)]
    mask = masks(tmp_path / "by option")["bild 5"]
    assert mask.shape == (100, 40)
    # Reduced by two, pixel 13 of 40 (the first that is not red) shares its pixel with a red one.
    assert mask[:, :12].all() and not mask[:, 14:].any()


def test_images_of_equal_size_go_through_together(model, photos, tmp_path, monkeypatch):
    batches = []
    call = OnnxLabeller.__call__

    def spy(self, images, labels, with_maps=False):
        batches.append(images.shape)
        return call(self, images, labels, with_maps)

    monkeypatch.setattr(OnnxLabeller, "__call__", spy)
    run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out", batch_size=3))
    assert sorted(batches) == [(1, 20, 30, 3), (1, 64, 26, 3), (2, 31, 17, 3), (3, 20, 30, 3)]
    assert len(masks(tmp_path / "out")) == 7


def test_second_call_skips_what_is_done_and_repeats_what_is_gone(model, photos, tmp_path):
    config = LabelOnnxConfig(model, (photos,), tmp_path / "out")
    run_label_onnx(config)
    (tmp_path / "out" / "SegmentationClass" / "bild 2.png").unlink()
    kept = tmp_path / "out" / "SegmentationClass" / "bild 0.png"
    before = kept.stat().st_mtime_ns
    summary = run_label_onnx(config)
    assert (summary.written, summary.skipped) == (1, 6)
    assert kept.stat().st_mtime_ns == before
    assert len(masks(tmp_path / "out")) == 7


def test_broken_images_are_recorded_and_do_not_stop_the_rest(model, photos, tmp_path):
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("no image")
    whole = (photos / "bild 0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    config = LabelOnnxConfig(model, (photos,), tmp_path / "out", batch_size=2)
    summary = run_label_onnx(config)
    assert (summary.written, summary.failed) == (7, 3)
    failed = {name: entry for name, entry in entries(tmp_path / "out").items() if entry["status"] == "error"}
    assert set(failed) == {"empty", "text", "cut"}
    assert "0 bytes" in failed["empty"]["error"]
    (photos / "text.jpg").write_bytes(whole)  # mended: the next call labels it
    assert run_label_onnx(config).written == 1
    assert entries(tmp_path / "out")["text"]["status"] == "ok"


def test_exit_status_says_that_images_failed(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (photos / "cut.png").write_bytes(b"no image")
    (photos / ".cache.png").write_bytes(b"")
    assert main([str(model), str(photos)]) == 3
    said = capsys.readouterr().out
    assert "7 images labelled, 0 up to date, 1 failed" in said and "1 files skipped" in said
    assert len(masks(tmp_path / "photos-masks")) == 7
    assert main([str(model), str(photos)]) == 3  # it still has no mask
    assert main([str(model), str(photos), "--allow-failures"]) == 0
    (photos / "cut.png").unlink()
    assert main([str(model), str(photos)]) == 0
    assert main([str(model), str(photos / "bild 0.png"), "--output", str(tmp_path / "one")]) == 0
    assert list(masks(tmp_path / "one")) == ["bild 0"]


def test_confidence_and_contact_sheet(model, photos, tmp_path):
    run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out", sheet=2))
    for name, entry in entries(tmp_path / "out").items():
        # The toy's map is 1 where an image is red and 0 elsewhere, and only "cat" is in it: at beta 0.25 both are sure.
        assert entry["confidence"] == 1.0, name
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 4 * 180
    (tmp_path / "out" / "contact_sheet.png").unlink()
    run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out", sheet=0))
    assert not (tmp_path / "out" / "contact_sheet.png").exists()


def test_two_calls_into_one_folder(model, photos, tmp_path):
    with locked(tmp_path / "out"), pytest.raises(DataError, match="is writing here"):
        run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out"))


def test_a_folder_of_a_version_without_settings(model, photos, tmp_path):
    run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out"))
    (tmp_path / "out" / "settings.json").unlink()
    assert run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out")).skipped == 7
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.raises(DataError, match="of another model or --max-side"):
        run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out", max_side=32))
    assert run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out", max_side=32, overwrite=True)).written == 7


def test_nothing_but_broken_images_is_an_error(model, tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 images"):
        run_label_onnx(LabelOnnxConfig(model, (tmp_path / "x.png",), tmp_path / "out"))


def test_a_batch_that_fails_is_tried_image_by_image(model, photos, tmp_path, monkeypatch):
    call = OnnxLabeller.__call__

    def short_of_memory(self, images, labels, with_maps=False):
        if len(images) > 1 or images.shape[1] == 31:
            raise RuntimeError("Failed to allocate memory")
        return call(self, images, labels, with_maps)

    monkeypatch.setattr(OnnxLabeller, "__call__", short_of_memory)
    summary = run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out"))
    assert (summary.written, summary.failed) == (5, 2)
    assert "Failed to allocate memory" in entries(tmp_path / "out")["bild 2"]["error"]


def test_mask_that_cannot_be_written_ends_the_call_with_its_path(model, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "SegmentationClass").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"SegmentationClass.*: cannot write the mask of bild \d"):
        run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out"))


def test_shards_are_disjoint_and_complete(model, photos, tmp_path):
    for part in ("1/3", "2/3", "3/3"):
        run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / part[0], shard=part))
    names = [name for part in "123" for name in masks(tmp_path / part)]
    assert len(names) == 7 and len(set(names)) == 7


def test_labels_come_from_the_file_by_folder_or_by_its_parent(photos, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        'image,labels\nbild 0.png,"dög;cat"\nphotos/ünter ordner/bild 1.png,dög\nbild 2,background\nbild 4.png,\n',
        encoding="utf-8",
    )
    jobs = {job.id: job.labels for job in with_labels(find_photos([photos]), table, ("cat", "dög"))}
    assert jobs["bild 0"] == (0, 1)
    assert jobs["ünter ordner/bild 1"] == (1,)
    assert jobs["bild 2"] == ()  # nothing in it
    assert jobs["bild 4"] is None and jobs["bild 6"] is None  # nobody has said what is in it
    rows = label_rows([(1,), (), None], 2)
    assert rows.dtype == np.float32
    assert rows.tolist() == [[0, 1], [0, 0], [-1, -1]]


def test_rows_without_an_image_are_named(photos, tmp_path, caplog):
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\nbild 0.png,cat\ngone.png,cat\n")
    with_labels(find_photos([photos]), table, ("cat", "dög"))
    assert "'gone.png' (line 3)" in caplog.text


def test_rows_of_one_image_are_joined(photos, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\nbild 0.png,dög\nbild 0.png,cat\nbild 0.png,dög\n", encoding="utf-8")
    found = {photo.id: photo.labels for photo in with_labels(find_photos([photos]), table, ("cat", "dög"))}
    assert sorted(found["bild 0"]) == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,labels\nbild 0.png,cow\n", r"line 2.*cow.*cat"),
        ("image,labels\nelsewhere/a.png,cat\n", r"none of its 1 rows.*bild 0\.png"),
    ],
)
def test_bad_label_files(photos, tmp_path, content, message):
    table = tmp_path / "labels.csv"
    table.write_text(content)
    with pytest.raises(DataError, match=message):
        with_labels(find_photos([photos]), table, ("cat", "dög"))


def test_two_images_for_one_mask_are_refused(photos):
    image = Image.open(photos / "bild 0.png")
    image.save(photos / "bild 0.jpg")
    with pytest.raises(DataError, match=r"bild 0\.(jpg|png).*bild 0\.(jpg|png).*rename"):
        find_photos([photos])


def test_one_folder_holds_masks_of_one_model(model, write_toy_model, photos, tmp_path):
    run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out"))
    other = write_toy_model(tmp_path / "other.onnx", beta=0.5)
    with pytest.raises(DataError, match=r"other settings: model_sha256"):
        run_label_onnx(LabelOnnxConfig(other, (photos,), tmp_path / "out"))
    with pytest.raises(DataError, match=r"other settings: max_side"):
        run_label_onnx(LabelOnnxConfig(model, (photos,), tmp_path / "out", max_side=32))


def test_unusable_models(write_toy_model, tmp_path):
    with pytest.raises(DataError, match=r"missing\.onnx: no such file"):
        OnnxLabeller(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(DataError, match=r"text\.onnx: damaged, or no ONNX model .*export the run again"):
        OnnxLabeller(tmp_path / "text.onnx")
    with pytest.raises(DataError, match=r"bare\.onnx.*cpn export"):
        OnnxLabeller(write_toy_model(tmp_path / "bare.onnx", metadata={}))
    with pytest.raises(DataError, match=r"format_version is 99, expected 1"):
        OnnxLabeller(write_toy_model(tmp_path / "new.onnx", format_version=99))


def test_metadata_survives_the_file(write_toy_model, tmp_path):
    info = OnnxLabeller(write_toy_model(tmp_path / "m.onnx", scales=(0.5, 1.0), flip=True, threshold=0.4)).info
    assert info.classes == ("cat", "dög")
    assert info.palette[2] == (0, 128, 0) and len(info.palette) == 256
    assert (info.scales, info.flip, info.threshold, info.beta, info.max_side) == ((0.5, 1.0), True, 0.4, 0.25, 64)


def test_wrong_arrays(model):
    labeller = OnnxLabeller(model)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(DataError, match="expected uint8"):
        labeller(image.astype(np.float32), label_rows([None], 2))
    with pytest.raises(DataError, match=r"\(1, 3\), expected \(1, 2\)"):
        labeller(image, label_rows([None], 3))


def test_provider_that_this_onnxruntime_lacks(model, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DataError, match=r"no TensorrtExecutionProvider.*install cpn-fast\[gpu\]"):
        OnnxLabeller(model, "tensorrt")


def test_provider_without_its_hardware_is_no_silent_fall_back(model, photos, tmp_path, capfd):
    if (
        "CUDAExecutionProvider"
        in onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"]).get_providers()
    ):
        pytest.skip("this machine can run the CUDA provider")
    status = main([str(model), str(photos), "--output", str(tmp_path / "out"), "--provider", "cuda"])
    assert status == 2
    assert "error: --provider cuda" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "4/3"], "--shard '4/3'"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--max-side", "0"], "--max-side"),
    ],
)
def test_bad_options_end_in_one_line(model, photos, tmp_path, capsys, options, message):
    assert main([str(model), str(photos), "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_runs_without_torch(model, photos, tmp_path, run_without_torch):
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\nbild 0.png,cat\n")
    done = run_without_torch(model, photos, "--image-labels", table, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert len(masks(tmp_path / "out")) == 7
    assert entries(tmp_path / "out")["bild 0"]["labels_from"] == "image"


def test_the_block_on_torch_blocks(run_without_torch):
    done = run_without_torch(module="torch")
    assert done.returncode == 1 and "blocked: torch" in done.stderr


@pytest.mark.slow
def test_masks_equal_those_of_cpn_label(trained, shapes_folder, tmp_path, run_without_torch):
    from cpn_fast.cam.label import LabelConfig, run_label

    for name, extra in (("plain", ()), ("reduced", ("--max-side", 70))):
        eager, exported = tmp_path / f"{name} eager", tmp_path / f"{name} onnx"
        side = 70 if extra else 1024
        run_label(
            LabelConfig(
                trained.run.path, f"folder:{shapes_folder}", eager, split="all", scales=(0.5, 1.0), beta=0.3,
                device="cpu", sheet=0, max_side=side,
            )
        )  # fmt: skip
        table = shapes_folder / "labels.csv"
        done = run_without_torch(
            trained.model, shapes_folder, "--image-labels", table, "--output", exported, "--threads", 1, *extra
        )
        assert done.returncode == 0, done.stderr
        ours, theirs = masks(exported, 3), masks(eager, 3)
        assert set(ours) == set(theirs) and len(ours) == 16
        one = np.concatenate([ours[name].ravel() for name in sorted(ours)])
        two = np.concatenate([theirs[name].ravel() for name in sorted(ours)])
        foreground = (one > 0) | (two > 0)
        assert foreground.mean() >= 0.1
        assert (one == two).mean() >= 0.999
        assert (one == two)[foreground].mean() >= 0.995
        manifest, theirs = entries(exported), entries(eager)
        assert {entry["labels_from"] for entry in manifest.values()} == {"image"}
        for key in ("confidence", "foreground"):
            assert [manifest[name][key] for name in ours] == pytest.approx(
                [theirs[name][key] for name in ours], abs=0.005
            )


@pytest.mark.parametrize(
    ("good", "bad"),
    [("scores = Add (nothing, base)", "scores = Div (nothing, none)"), ("(map, map)", "(map, wrong)")],
)
def test_a_model_that_gives_nan_labels_nothing(write_toy_model, photos, tmp_path, good, bad):
    """NaN among the scores of every image; among the maps, which are looked at in the first batch alone."""
    graph = TOY_GRAPH.replace(good, bad)
    if "wrong" in bad:
        graph = graph.replace("  rcam = Concat", "  wrong = Div (map, none)\n  rcam = Concat")
    model = write_toy_model(tmp_path / "toy.onnx", graph=graph)
    output = tmp_path / "out"
    config = LabelOnnxConfig(model, (photos / "bild 0.png",), output)
    with pytest.raises(DataError, match="none of the 1 images could be labelled"):
        run_label_onnx(config)
    assert "the model's scores or maps hold NaN or infinity" in entries(output)["bild 0"]["error"]
    assert not list(output.rglob("*.png"))


@pytest.mark.parametrize("place", [".", "masks", "ünter ordner"])
def test_an_output_among_the_images_is_refused_before_anything_is_written(model, photos, place, capsys):
    before = sorted(photos.rglob("*"))
    assert main([str(model), str(photos), "--output", str(photos / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "lies in the data" in line and "outside of that folder" in line
    assert sorted(photos.rglob("*")) == before
