"""Options of `cpn-label`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from cpn_export.providers import Provider
from cpn_fast.cluster.options import EngineOptions
from cpn_fast.files.images import DEFAULT_MAX_PIXELS


@dataclass(frozen=True)
class LabelOnnxConfig(EngineOptions):
    """Label images with an exported model.

    Exit status: 0 = every image has its mask; 2 = an error that the message explains; 3 = some images could not be
    labelled, see manifest.jsonl (0 with --allow-failures); 130 = interrupted.

    `cpn-label MODEL --info` prints what the model is, `cpn-label MODEL --benchmark` how fast it is.

    Attributes:
        model: the `.onnx` file that `cpn export` wrote.
        images: folders of images (searched recursively) or image files; hidden ones do not count.
        output: folder for SegmentationClass/*.png, labelmap.txt, manifest.jsonl and the contact sheet; None =
            `NAME-masks` in the current folder, by the first of the images.
        image_labels: CSV `image,labels`; for images that it does not list the scores of a CAM network stand in, and a
            segmentation network chooses from all classes.
        provider: where to run: "cpu", "cuda", "tensorrt", "openvino", "coreml" or "directml", with the onnxruntime that
            has it; "auto" = the first of CUDA, CoreML, DirectML, OpenVINO and the CPU that starts.
        shard: `i/n`, only the i-th of n parts, counted from 1.
        max_side: longer images are reduced to this long side in pixels first; None = the model's.
        max_pixels: larger images are not decoded.
        batch_size: images of equal size that go through together.
        workers: threads that decode, and as many that write.
        threads: CPU threads of the network; 0 = all cores.
        sheet: number of least confident masks on the contact sheet; 0 = none.
        overwrite: label everything again, also with another model or --max-side.
        info: print the model card and label nothing.
        benchmark: print images per second of each provider that is there, or of --provider, and each of --batches, and
            label nothing.
        batches: of --benchmark, numbers of images that go through together.
        allow_failures: exit with status 0 also where some images could not be labelled.
    """

    model: tyro.conf.Positional[Path]
    images: tyro.conf.Positional[tuple[Path, ...]]
    output: Path | None = None
    image_labels: Path | None = None
    provider: Provider = "cpu"
    shard: str | None = None
    max_side: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    batch_size: int = 4
    workers: int = 2
    threads: int = 0
    sheet: int = 24
    overwrite: bool = False
    allow_failures: bool = False
    info: bool = False
    benchmark: bool = False
    batches: tuple[int, ...] = (1, 4, 16)
