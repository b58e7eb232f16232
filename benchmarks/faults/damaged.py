"""Damaged files given to whole commands: each reads them or refuses them in one line, in bounded time and memory."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.faults import forks
from benchmarks.faults.mutate import bytes_mutations, json_mutations, text_mutations
from benchmarks.faults.starve import clear
from benchmarks.faults.subjects import MAPS, SHOWN, TRAINED

LIMIT = 60.0
"""Seconds after which a command counts as hung; none of them takes more than two on an idle machine."""
MEMORY_MIB = 700.0
"""That a command may take beyond what it takes for the undamaged file."""

Mutations = Callable[[bytes, int, int], Iterator[bytes]]


@dataclass(frozen=True)
class Case:
    """A kind of file.

    Attributes:
        path: what is damaged.
        words: the command that reads it, `--output` left out.
        mutations: of its content.
        output: the command takes one.
        gives_masks: it writes a folder of masks, whose manifest is held against it.
    """

    path: Path
    words: tuple[str, ...]
    mutations: Mutations = bytes_mutations
    output: bool = True
    gives_masks: bool = False


def as_text(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Mutations of a text file."""
    return text_mutations(content.decode(), count, seed)


def as_json(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Mutations of a JSON file's values."""
    return json_mutations(json.loads(content), count, seed)


def plain_cases(folder: Path) -> dict[str, Case]:
    """By kind, those that need no training: weights and data sets, written to `folder`."""
    weights = write_weights(folder / "weights")
    files = {f"weights (.{name})": weights / f"w.{name}" for name in ("safetensors", "pth", "params")}
    read = {name: Case(file, ("cpn", "weights", "check", str(file)), output=False) for name, file in files.items()}
    return read | _sources(folder)


def run_cases(made: Path, folder: Path) -> dict[str, Case]:
    """By kind, what commands read of a run, a labelling and an exported model, and their images.

    Args:
        made: where `subjects` made them.
        folder: for copies.
    """
    photos = _photos(folder / "photos")
    run, masks = _copy(made / "run", folder / "run"), _copy(made / "masks", folder / "masks")
    data, model = f"demo:{made / 'demo'}", folder / "model.onnx"
    shutil.copyfile(made / "model.onnx", model)
    label = ("cpn", "label", str(run), str(photos), "--device", "cpu", *MAPS, *SHOWN)
    refine = ("cpn", "refine", str(masks), "--crf", "--iterations", "1", "--workers", "1")
    resumed = ("cpn", "train", "--data", data, "--method", "cpn", *TRAINED, "--options.warm-up", "0.5", "--resume",
               "--output", str(run))  # fmt: skip
    soft = sorted((masks / "SoftMaps").iterdir())[0]
    return {
        "image (PNG)": Case(photos / "a.png", label, gives_masks=True),
        "image (JPEG)": Case(photos / "b.jpg", label, gives_masks=True),
        "config of a run": Case(run / "config.json", label, as_json, gives_masks=True),
        "weights of a run": Case(run / "model.safetensors", label, gives_masks=True),
        "checkpoint": Case(run / "checkpoints" / "last.ckpt", resumed, output=False),
        "ONNX model": Case(model, ("cpn-label", str(model), str(photos), *SHOWN), gives_masks=True),
        "class maps": Case(soft, refine, gives_masks=True),
        "manifest": Case(masks / "manifest.jsonl", refine, as_text, gives_masks=True),
        "mask": Case(sorted((masks / "SegmentationClass").glob("*.png"))[0],
                     ("cpn", "evaluate", str(masks), "--data", data, "--split", "train")),
        "labelmap": Case(masks / "labelmap.txt", ("cpn", "convert", str(masks), "--format", "coco"), as_text),
    }  # fmt: skip


def _sources(folder: Path) -> dict[str, Case]:
    """Data sets of two images."""

    def check(kind: str, path: Path) -> tuple[str, ...]:
        return ("cpn", "check-data", f"{kind}:{path}", "--no-estimate")

    csv, coco, voc = folder / "csv", folder / "coco", folder / "voc"
    _photos(csv)
    (csv / "labels.csv").write_text("image,labels,split\na.png,cat;dog,train\nb.jpg,dog,val\n")
    _photos(coco)
    shape = {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [[1, 1, 30, 1, 30, 20]]}
    listed = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 56}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [shape, shape | {"id": 2, "category_id": 5}],
    }
    (coco / "labels.json").write_text(json.dumps(listed))
    _photos(voc / "JPEGImages")
    (voc / "Annotations").mkdir()
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("a", "b"):
        (voc / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><object><name>dog</name></object></annotation>\n"
        )
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    tar, parquet = folder / "tars" / "train-000.tar", folder / "parquet" / "train-000.parquet"
    _write_tar(tar, csv)
    _write_parquet(parquet, csv)
    return {
        "CSV": Case(csv / "labels.csv", check("folder", csv), as_text, output=False),
        "COCO": Case(coco / "labels.json", check("coco", coco / "labels.json"), as_json, output=False),
        "VOC's XML": Case(voc / "Annotations" / "a.xml", check("voc", voc), as_text, output=False),
        "tar": Case(tar, check("wds", tar), output=False),
        "Parquet": Case(parquet, check("parquet", parquet), output=False),
    }


def _photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3)).astype(np.uint8)
    Image.fromarray(pixels[0]).save(folder / "a.png")
    Image.fromarray(pixels[1]).save(folder / "b.jpg")
    return folder


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def write_weights(folder: Path) -> Path:
    """Two tensors in each layout: w.safetensors, w.pth and w.params, in a folder that is made."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    state = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(2)}
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pth")
    array = bytes.fromhex("c9fa93f9 00000000 02000000 0200000000000000 0300000000000000 01000000 00000000 00000000")
    (folder / "w.params").write_bytes(
        bytes.fromhex("1201000000000000 0000000000000000 0100000000000000") + array
        + np.arange(6.0, dtype="<f4").tobytes() + bytes.fromhex("0100000000000000 0500000000000000 6172673a61")
    )  # fmt: skip
    return folder


def _write_tar(path: Path, photos: Path) -> None:
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for key, name, label in (("a", "a.png", "cat"), ("b", "b.jpg", "dog")):
            for ending, data in ((Path(name).suffix, (photos / name).read_bytes()), (".cls", label.encode())):
                member = tarfile.TarInfo(key + ending)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_parquet(path: Path, photos: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir()
    images = [{"bytes": (photos / name).read_bytes(), "path": name} for name in ("a.png", "b.jpg")]
    pq.write_table(pa.table({"image": images, "label": ["cat", "dog"]}), path)


def feed(case: Case, count: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Run the command with `count` damaged versions of its file.

    Returns:
        `tried`; how often it was `read` and `refused`; and `faults`: what was said where neither holds.
    """
    content = case.path.read_bytes()
    calm = _run(case, folder)
    if calm.status != 0:
        raise RuntimeError(f"{' '.join(case.words)}: status {calm.status}:\n{calm.said}")
    tally = Counter[str]()
    faults = []
    keep = _copy(case.path.parent, folder / "kept") if case.words[1] == "train" else None
    for number, damaged in enumerate(case.mutations(content, count, seed)):
        if keep is not None:  # this command goes on in the folder of what it reads
            shutil.rmtree(case.path.parent)
            shutil.copytree(keep, case.path.parent)
        case.path.write_bytes(damaged)
        output = forks.scratch(folder, "fed")
        ended = _run(case, folder, output)
        fault = _fault(case, ended, output, calm.peak_mib)
        if fault:
            faults.append(f"mutation {number}: {fault}")
        else:
            tally["read" if ended.status == 0 else "refused"] += 1
        shutil.rmtree(output.parent)
    case.path.write_bytes(content)
    return {"tried": count, "read": tally["read"], "refused": tally["refused"], "faults": faults}


def _run(case: Case, folder: Path, output: Path | None = None) -> forks.Ended:
    output = output or forks.scratch(folder, "calm")
    more = ("--output", str(output / "x.json" if "convert" in case.words else output)) if case.output else ()
    return forks.run([*case.words, *more], limit=LIMIT)


def _fault(case: Case, ended: forks.Ended, output: Path, calm_mib: float) -> str | None:
    """What is wrong with how a command took a damaged file."""
    if ended.status is None:
        return f"hung for {LIMIT:.0f} s: {ended.said[-500:]}"
    if not clear(ended):
        return f"status {ended.status}: {ended.said[-1500:]}"
    if ended.peak_mib > calm_mib + MEMORY_MIB:
        return f"{ended.peak_mib:.0f} MiB of memory, {calm_mib:.0f} for the undamaged file"
    if ended.status != 0 and not ended.said.strip():
        return f"status {ended.status} without a word"
    if case.gives_masks and ended.status == 0:
        return _wrong_masks(output)
    return None


def _wrong_masks(folder: Path) -> str | None:
    """A status of 0 promises a mask of its size for every image of the manifest."""
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["status"] != "ok":
            return f"status 0, but {entry['id']} has failed"
        with Image.open(folder / "SegmentationClass" / f"{entry['id']}.png") as mask:
            if mask.size != (entry["width"], entry["height"]):
                return f"{entry['id']}: a mask of {mask.size} for an image of {entry['width']} x {entry['height']}"
    return None
