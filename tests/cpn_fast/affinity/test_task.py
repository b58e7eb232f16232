"""`cpn train-affinity`: labels against those made by hand, training, exact resume, and everything that is refused."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import cpn_fast.affinity.labels as labels_module
from cpn_fast.affinity.batches import AffinityBatch, AffinityStream, crop_labels
from cpn_fast.affinity.command import run_affinity
from cpn_fast.affinity.labels import LabelStore
from cpn_fast.affinity.options import parse
from cpn_fast.affinity.task import AffinityTask
from cpn_fast.config.training import AffinityConfig, AugmentOptions, replace_dotted
from cpn_fast.data.loading.augment import Geometry
from cpn_fast.data.loading.steps import Span
from cpn_fast.files import disk_space
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import write_mask
from cpn_fast.files.soft_maps import read_soft_maps, write_soft_maps
from cpn_fast.models.affinity_labels import affinity_labels
from cpn_fast.models.affinity_net import affinity_loss, pair_counts, pair_labels
from cpn_fast.refine.labelled_folder import LabelledFolder
from cpn_fast.refine.random_walk import WalkStep
from cpn_fast.runs.checkpoint import load_checkpoint, state_sha256
from cpn_fast.runs.folder import RunFolder
from cpn_kernels.ops.cp_triplet import normalise_images
from cpn_kernels.ops.dense_crf import dense_crf
from tests.grouped import grouped

STEPS = 6


@pytest.fixture(scope="module")
def toys(make_labelling, tmp_path_factory):
    """Four labelled images; do not change it."""
    return make_labelling(tmp_path_factory.mktemp("labelled") / "masks")


@pytest.fixture
def masks(make_labelling, tmp_path):
    """The same, to change."""
    return make_labelling(tmp_path / "masks")


def config(masks: Path, output: Path, **more) -> AffinityConfig:
    values = {
        "backbone": "resnet38_tiny",
        "epochs": STEPS // 2,
        "batch_size": 2,
        "workers": 0,
        "lr": 0.01,
        "log_every": 1,
        "accelerator": "cpu",
        "augment": AugmentOptions(crop=32, resize=(40, 70)),
    } | more
    return AffinityConfig(masks=masks, output=output, **grouped(values))


@pytest.fixture(scope="module")
def run(toys, tmp_path_factory) -> RunFolder:
    return run_affinity(config(toys, tmp_path_factory.mktemp("run") / "aff"))


def lines(path: Path) -> dict:
    return {e["id"]: e for e in map(json.loads, path.read_text().splitlines())}


def test_labels_of_an_image_equal_those_made_by_hand(toys, run):
    entry = lines(toys / "manifest.jsonl")["1"]
    image = np.asarray(Image.open(entry["image"])).copy()
    with np.load(toys / "SoftMaps" / "1.npz") as stored:
        maps = stored["maps"].astype(np.float64) / 255
    alpha = 1.0  # of beta 0.5: 0.5 = (1 - 0.5) ** 1
    for power, folder in ((2 / 3 * alpha, "low"), (4 * alpha, "high")):
        scores = np.stack([(1 - maps[0]) ** power, maps[0]])
        probabilities = torch.from_numpy(scores / scores.sum(0)).float()[None]
        expected = dense_crf(torch.from_numpy(image)[None], probabilities, 10, bilateral_sxy=80, bilateral_srgb=13)
        found = read_soft_maps(run.path / "labels" / folder / "SoftMaps" / "1.npz")
        assert found.classes.tolist() == [0, 2] and found.size == (40, 56)
        assert np.abs(found.maps - expected[0].numpy()).max() < 0.6 / 255
    settings = json.loads((run.path / "labels" / "settings.json").read_text())
    assert (settings["low_power"], settings["high_power"]) == (pytest.approx(2 / 3), pytest.approx(4))
    assert settings["label.beta"] == 0.5 and settings["bilateral_sxy"] == 80


def scores_of(seed: int, height: int, width: int) -> np.ndarray:
    """Three channels of blocks, so that cells of the grid have a clear winner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, height // 4, width // 4), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def labelled(low: np.ndarray, high: np.ndarray, stride: int) -> torch.Tensor:
    return affinity_labels(*(torch.from_numpy(s.copy()).float()[None] / 255 for s in (low, high)), stride)[0]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_labels_follow_the_image_s_augmentation(flip, factor):
    """Resized, mirrored and cut by hand, with padding where the crop shows no image."""
    low, high = scores_of(0, 24, 40), scores_of(1, 24, 40)
    scaled = (24 * factor, 40 * factor)
    top, left, rows, columns = 8, 4, 16, 24
    geometry = Geometry(scaled, flip, 32, (top, left), (3, 5), (rows, columns))
    expected = []
    for scores in (low, high):
        moved = scores.repeat(factor, 1).repeat(factor, 2)
        moved = moved[:, :, ::-1] if flip else moved
        out = np.zeros((3, 32, 32), np.uint8)
        out[:, 3 : 3 + rows, 5 : 5 + columns] = moved[:, top : top + rows, left : left + columns]
        expected.append(out)
    found = crop_labels(low, high, geometry, 8)
    assert torch.equal(found, labelled(*expected, 8))
    assert found.shape == (4, 4) and (found[3] == 255).all()  # rows 24.. are padding
    assert len(found.unique()) > 2


def test_mirrored_labels_are_the_mirrored_labels():
    low, high = scores_of(2, 32, 32), scores_of(3, 32, 32)
    plain, mirrored = (
        crop_labels(low, high, Geometry((32, 32), flip, 32, (0, 0), (0, 0), (32, 32)), 8) for flip in (False, True)
    )
    assert torch.equal(plain.flip(1), mirrored)


def test_an_image_of_background_alone_is_background_everywhere():
    ones = np.full((1, 16, 16), 255, np.uint8)
    labels = crop_labels(ones, ones, Geometry((16, 16), False, 32, (0, 0), (8, 8), (16, 16)), 8)
    assert (labels[1:3, 1:3] == 0).all() and (labels == 255).sum() == 12


def test_batches_hold_class_values_and_their_pairs(toys, run):
    store = LabelStore(run.path / "labels")
    stream = AffinityStream(store.frozen, {}, store, config(toys, run.path), 8, Span(0, 2))
    seen = set()
    for batch in stream:
        assert batch.images.shape == (2, 32, 32, 3) and batch.labels.shape == (2, 4, 4)
        for number, name in enumerate(batch.ids):
            value = int(name) % 2 + 1
            assert set(batch.labels[number].unique().tolist()) <= {0, value, 255}
            assert torch.equal(batch.pairs[number], pair_counts(batch.labels[number : number + 1]))
            seen |= set(batch.labels[number].unique().tolist())
    assert {0, 1, 2} <= seen


def test_the_loss_of_parts_with_common_counts_is_that_of_the_whole_batch():
    """What data-parallel training relies on, in float64, with very different counts in the two parts."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (4, 6, 6), generator=generator)]
    labels[2:] = 0
    affinity = torch.rand(4, 34, 6, 6, generator=generator, dtype=torch.float64).requires_grad_()
    whole = affinity_loss(affinity, labels)
    (expected,) = torch.autograd.grad(whole.total, affinity)
    share = pair_counts(labels).double() / 2
    parts = [affinity_loss(affinity[s], labels[s], counts=share) for s in (slice(0, 2), slice(2, 4))]
    for name in ("total", "background", "foreground", "negative"):
        mean = sum(getattr(part, name) for part in parts) / 2
        assert mean.item() == pytest.approx(getattr(whole, name).item(), rel=1e-6)
    (found,) = torch.autograd.grad(sum(part.total for part in parts) / 2, affinity)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_a_process_divides_by_its_share_of_all_pairs(monkeypatch):
    """The other of two processes has pairs [10, 0, 4] in all."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda pairs: pairs.add_(torch.tensor([10.0, 0.0, 4.0])))
    pairs = torch.tensor([[1, 2, 3], [1, 0, 1]])
    batch = AffinityBatch(("a", "b"), torch.zeros(2, 8, 8, 3), torch.zeros(2, 1, 1), pairs)
    for world_size, expected in ((1, [2, 2, 4]), (2, [6, 1, 4])):
        stage = SimpleNamespace(fabric=SimpleNamespace(world_size=world_size))
        given = AffinityTask.inputs(stage, batch, 1, 1)[2]
        assert given.tolist() == expected


def test_training_tells_colours_apart(toys, tmp_path):
    """Afterwards affinities are low across the colours' edges, also where the maps were not sure."""
    augment = AugmentOptions(crop=64, resize=(96, 112))
    learner = config(toys, tmp_path / "aff", backbone="mobilenet_v2_stride8", epochs=20, augment=augment)
    run = run_affinity(learner)
    records = run.records("step")
    assert len(records) == 40 and records[0].keys() >= {"loss", "background", "foreground", "negative", "lr"}
    first, last = (np.mean([record["loss"] for record in part]) for part in (records[:5], records[-5:]))
    assert last < 0.5 * first
    net, within, across = run.load_affinity_net(), [], []
    for entry in lines(toys / "manifest.jsonl").values():
        picture = np.asarray(Image.open(entry["image"]).resize((112, 80)))
        truth = torch.from_numpy((picture[::8, ::8, 2] < 100).astype(np.int64))[None]
        with torch.no_grad():
            affinity = net(normalise_images(torch.from_numpy(picture.copy())[None]))
        pairs = pair_labels(truth)
        within += affinity[pairs.background | pairs.foreground].tolist()
        across += affinity[pairs.negative].tolist()
    assert np.mean(across) < 0.6 * np.mean(within)


@pytest.fixture
def with_truth(masks):
    """A source of the labelled images, two of which have masks, with classes in another order."""
    root = masks.parent / "photos"
    shutil.copytree(masks.parent / "masks images", root / "images")
    (root / "masks").mkdir()
    for name, value in (("0", 3), ("1", 1)):
        image = np.asarray(Image.open(root / "images" / f"{name}.png"))
        write_mask(root / "masks" / f"{name}.png", np.where(image[..., 2] < 100, value, 0).astype(np.uint8))
    (root / "classes.txt").write_text("green\nunseen\nred\n")
    names = {0: "red", 1: "green", 2: "red", 3: "green"}
    (root / "labels.csv").write_text("image,labels\n" + "".join(f"{i}.png,{name}\n" for i, name in names.items()))
    return f"folder:{root}"


def test_curves_score_the_masks_before_and_after_the_walk(masks, with_truth, tmp_path):
    crop = AugmentOptions(crop=40, resize=(56, 56))  # the middle of which is the images' own size
    learner = config(masks, tmp_path / "aff", data=with_truth, val_images=5, max_steps=1, augment=crop)
    run = run_affinity(learner)
    (record,) = run.records("eval")
    folder, net = LabelledFolder.open(masks, with_truth), run.load_affinity_net()
    truths, before, after = [], [], []
    for name, value in (("0", 1), ("1", 2)):
        soft = folder.masks.read_soft(name, len(folder.classes))
        image = np.asarray(Image.open(folder.images[name]))
        scores = torch.from_numpy(np.concatenate([1 - soft.maps, soft.maps]))[None]  # the power of beta 0.5 is 1
        truths.append(np.where(image[..., 2] < 100, value, 0))
        before.append(value * scores[0].argmax(0).numpy())
        after.append(value * WalkStep(net, "", 16, 16, 1.0)(name, image, scores)[0].argmax(0).numpy())
    assert record["images"] == 2
    for key, masks_found in (("maps_miou", before), ("walk_miou", after)):
        ious = [
            np.sum([((t == c) & (m == c)).sum() for t, m in zip(truths, masks_found, strict=True)])
            / np.sum([((t == c) | (m == c)).sum() for t, m in zip(truths, masks_found, strict=True)])
            for c in range(3)
        ]
        assert record[key] == pytest.approx(np.mean(ious), abs=1e-9)


def test_without_masks_in_the_data_there_are_no_curves(masks, with_truth, tmp_path):
    shutil.rmtree(masks.parent / "photos" / "masks")
    run = run_affinity(config(masks, tmp_path / "aff", data=with_truth, max_steps=1))
    assert not run.records("eval") and len(run.records("step")) == 1


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_ends_with_the_same_bits(toys, run, tmp_path, stop):
    shutil.copytree(run.path / "labels", tmp_path / "aff" / "labels")
    part = config(toys, tmp_path / "aff")
    run_affinity(replace_dotted(part, {"max_steps": stop}))
    resumed = run_affinity(replace_dotted(part, {"resume": True}))
    states = [load_checkpoint(folder.checkpoint_path) for folder in (run, resumed)]
    assert states[0]["step"] == states[1]["step"] == STEPS
    for name in ("model", "optimizer"):
        assert state_sha256({name: states[0][name]}) == state_sha256({name: states[1][name]})
    assert [r["loss"] for r in run.records("step")] == [r["loss"] for r in resumed.records("step")]


def test_resume_takes_the_run_s_own_settings(run, toys):
    given = parse([str(toys), "--output", str(run.path), "--resume", "--max-steps", "9"])
    assert given == replace_dotted(run.config_of(AffinityConfig), {"resume": True, "max_steps": 9, "masks": toys})
    assert (given.augment.crop, given.backbone) == (32, "resnet38_tiny")


def change(path: Path) -> None:
    soft = read_soft_maps(path)
    write_soft_maps(path, replace(soft, maps=1 - soft.maps))


@pytest.fixture
def begun(masks, tmp_path) -> AffinityConfig:
    begun = config(masks, tmp_path / "aff")
    run_affinity(replace_dotted(begun, {"max_steps": 1}))
    return replace_dotted(begun, {"resume": True, "max_steps": 2})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: change(c.output / "labels" / "low" / "SoftMaps" / "2.npz"), r"labels of 2 are gone or have changed"),
        (lambda c: (c.output / "labels" / "high" / "SoftMaps" / "0.npz").unlink(), r"labels of 0 are gone"),
        (lambda c: change(c.masks / "SoftMaps" / "3.npz"), r"SoftMaps/3\.npz: labelled anew since the run began"),
        (lambda c: (c.output / "labels" / "index.json").unlink(), r"index\.json: "),
        (lambda c: Path(lines(c.masks / "manifest.jsonl")["1"]["image"]).unlink(), r"1\.png: not found \(1 of 4"),
    ],
)
def test_resume_refuses_labels_that_have_changed(begun, spoil, message):
    spoil(begun)
    with pytest.raises(DataError, match=message):
        run_affinity(begun)


def test_resume_goes_on_without_the_labelling_but_not_with_another_beta(begun):
    with pytest.raises(DataError, match=r"cannot resume with other settings: beta \(run: None, now: 0\.4\)"):
        run_affinity(replace(begun, beta=0.4))
    shutil.rmtree(begun.masks)
    assert len(run_affinity(begun).records("step")) == 2


def test_a_run_is_not_begun_twice(begun):
    with pytest.raises(DataError, match="holds a run already; resume it with --resume"):
        run_affinity(replace_dotted(begun, {"resume": False}))


def test_an_image_that_is_gone_is_recorded_and_the_rest_is_trained_on(masks, tmp_path, caplog):
    gone = Path(lines(masks / "manifest.jsonl")["2"]["image"])
    gone.unlink()
    run = run_affinity(config(masks, tmp_path / "aff", max_steps=1))
    entry = lines(run.path / "labels" / "manifest.jsonl")["2"]
    assert entry["status"] == "error" and str(gone) in entry["error"] and "--data SOURCE" in entry["error"]
    assert "1 of 4 images are excluded" in caplog.text and str(gone) in caplog.text
    assert [e["id"] for e in LabelStore(run.path / "labels").frozen] == ["0", "1", "3"]


class Killed(BaseException):
    """As if the process ended."""


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [(Killed(), Killed, None), (OSError(errno.ENOSPC, "No space left on device"), DataError, "free disk space")],
)
def test_a_stopped_synthesis_goes_on(masks, tmp_path, monkeypatch, error, raised, message):
    count = [0]

    def write(path, soft):
        count[0] += 1
        if count[0] > 5:
            raise error
        write_soft_maps(path, soft)

    start = config(masks, tmp_path / "aff", max_steps=1)
    monkeypatch.setattr(labels_module, "available_cores", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(labels_module, "write_soft_maps", write)
        with pytest.raises(raised, match=message):
            run_affinity(start)
    with pytest.raises(DataError, match="stopped while its labels were made; rerun that command, without --resume"):
        parse([str(masks), "--output", str(start.output), "--resume"])
    assert len(lines(start.output / "labels" / "manifest.jsonl")) == 2
    made = []
    monkeypatch.setattr(
        labels_module, "write_soft_maps", lambda path, soft: (made.append(path.stem), write_soft_maps(path, soft))
    )
    assert len(run_affinity(start).records("step")) == 1
    assert sorted(made) == ["2", "2", "3", "3"]


def test_labels_of_other_powers_make_way_until_a_run_has_begun(masks, tmp_path, monkeypatch):
    start = config(masks, tmp_path / "aff", max_steps=1)
    monkeypatch.setattr("cpn_fast.affinity.task.AffinityTask._need_images", lambda _: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        run_affinity(start)
    monkeypatch.undo()
    run = run_affinity(replace(start, beta=0.3))
    assert len(LabelStore(run.path / "labels").frozen) == 4
    settings = json.loads((run.path / "labels" / "settings.json").read_text())
    assert settings["low_power"] == pytest.approx(2 / 3 * np.log(0.3) / np.log(0.7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 1.0}, "--beta"),
        ({"beta": -1.0}, "--beta -1"),
        ({"low_share": 1.5}, "low is 1.5"),
        ({"high_share": 0.5}, "high is 0.5"),
    ],
)
def test_powers_out_of_range(toys, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        run_affinity(config(toys, tmp_path / "aff", **changes))
    assert not RunFolder(tmp_path / "aff").exists()


def test_what_is_missing_is_said(masks, tmp_path):
    (masks / "settings.json").unlink()
    with pytest.raises(DataError, match=r"key beta: found None, expected a number in 0..1; give --beta"):
        run_affinity(config(masks, tmp_path / "aff"))
    shutil.rmtree(masks / "SoftMaps")
    with pytest.raises(DataError, match=r"no class maps there; call `cpn label` again with --soft-maps"):
        run_affinity(config(masks, tmp_path / "aff"))
    with pytest.raises(DataError, match=r"manifest\.jsonl: not found; expected a folder that `cpn label` wrote"):
        run_affinity(config(tmp_path, tmp_path / "aff"))


def test_a_full_disk_is_said_before_the_work(toys, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="free some"):
        run_affinity(config(toys, tmp_path / "aff"))
