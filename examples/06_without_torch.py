"""Label with an exported model where torch is not installed: onnxruntime, numpy and Pillow are enough."""

import sys
from pathlib import Path

import cpn_fast


def main(folder: Path) -> None:
    """Use the model that 03_score_and_convert.py wrote into a folder."""
    model = cpn_fast.load(folder / "model.onnx")  # the same calls as of a run
    print(model, "knows", ", ".join(model.classes))

    out = model.labeller()(folder / "data" / "JPEGImages" / "val_0001.jpg")
    print("mask", out.mask.shape, "predicted labels", out.labels)

    # A folder of photos, without any labels; a CSV or class folders would give them.
    summary = cpn_fast.label(model, folder / "data" / "JPEGImages", folder / "onnx_masks")
    print(f"{summary.written} masks written, {summary.skipped} up to date: {summary.output}")
    print("torch was imported:", "torch" in sys.modules)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"))
