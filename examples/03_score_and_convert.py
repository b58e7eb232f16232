"""Write the masks of a whole split, score them, convert them to COCO JSON, and export the network to ONNX."""

import sys
from pathlib import Path

import cpn_fast
from cpn_export.to_onnx import run_export
from cpn_fast.config.export import ExportConfig
from cpn_fast.convert.command import ConvertConfig, run_convert


def main(folder: Path) -> None:
    """Use the run that 01_train.py wrote into a folder."""
    run = cpn_fast.load(folder / "run")
    source = cpn_fast.open_source(f"demo:{folder / 'data'}")

    # What is there is skipped: an interrupted labelling resumes when it is run again.
    masks = folder / "masks"
    summary = cpn_fast.label(run, source, masks, split="val", scales=(1.0,))
    print(f"{summary.written} masks written, {summary.skipped} up to date, {summary.failed} failed: {masks}")

    scores = cpn_fast.evaluate(masks, source, split="val")
    print(f"mIoU {100 * (scores.miou or 0):.1f}% on {scores.images} images")
    for name, value in scores.per_class.items():
        print(f"  {name}: {'-' if value is None else f'{100 * value:.1f}%'}")

    converted = run_convert(ConvertConfig(masks, "coco", folder / "masks.json", overwrite=True))
    print(f"{converted.output}: {converted.objects} objects")

    # Scales and flip are part of the file; `cpn-label`, `cpn_fast.load` and any ONNX runtime take it.
    model = run_export(ExportConfig(folder / "run", folder / "model.onnx", scales=(1.0,), flip=False))
    print(f"{model}: {model.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"))
