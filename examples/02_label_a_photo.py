"""Label one photo from Python: a path, an array or a PIL image; with labels or without."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import cpn_fast


def main(folder: Path) -> None:
    """Use the run that 01_train.py wrote into a folder."""
    run = cpn_fast.load(folder / "run")
    labeller = run.labeller(scales=(0.5, 1.0))  # the network stays in memory for as many photos as you like
    photo = folder / "data" / "JPEGImages" / "val_0000.jpg"

    # With the classes that are in the photo: background and these compete for every pixel.
    out = labeller(photo, labels=["bars", "wedge"])
    print("mask", out.mask.shape, out.mask.dtype, "values", np.unique(out.mask))
    print("maps of", out.labels, out.maps.shape)
    for name, score in sorted(zip(out.classes, out.scores, strict=True), key=lambda pair: -pair[1])[:3]:
        print(f"  {name}: {score:.2f}")

    # Without labels the network's own scores decide which classes are there.
    array = np.asarray(Image.open(photo))
    print("predicted labels:", labeller(array).labels)

    # A list gives a list; a mask is saved as a palette PNG in VOC's colours.
    first, second = labeller([photo, Image.fromarray(array[:, ::-1])], labels=[["bars"], None])
    first.save(folder / "bars.png")
    print(folder / "bars.png", "and a mirrored photo:", second.labels)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"))
