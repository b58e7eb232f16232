"""Make a small data set, look at it, and train a toy network on its image labels."""

import sys
from pathlib import Path

import cpn_fast
from cpn_fast.data.sources.demo import generate_demo


def main(folder: Path) -> None:
    """Write `data` and `run` into a folder."""
    # Scenes of shapes: images with labels, and masks for scoring. Your own photos: cpn_fast.open_source("photos").
    data = generate_demo(folder / "data", train=12, val=6, pretrain=4)
    source = cpn_fast.open_source(f"demo:{data}")
    print("classes:", ", ".join(source.classes))
    for record in source.records("train")[:3]:
        print(record.image_path.name, "shows", [source.classes[index] for index in record.labels or ()])

    # Every option of `cpn train` is a field. resnet38_tiny is the toy among cpn_fast.list_backbones().
    config = cpn_fast.TrainConfig(
        data=source.spec,
        output=folder / "run",
        method="cpn",
        backbone="resnet38_tiny",
        loop=cpn_fast.LoopOptions(max_steps=6, batch_size=4, val_images=2),
        optimizer=cpn_fast.OptimizerOptions(lr=0.002),
        device=cpn_fast.DeviceOptions(workers=0),
        augment=cpn_fast.AugmentOptions(crop=64),
        patch=cpn_fast.PatchOptions(kind="grid", grid_sides=(8, 16)),
    )
    run = cpn_fast.train(config)  # silent; progress=True shows a bar
    losses = [round(record["loss"], 3) for record in run.metrics if record["kind"] == "step"]
    print(f"{run}: losses {losses}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"))
