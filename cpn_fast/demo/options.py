"""Options of `cpn demo` and the recipe of its trainings; free of torch, so that --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RECIPE = (
    *("--backbone", "resnet38_tiny", "--epochs", "14", "--batch-size", "8", "--lr", "0.04", "--momentum", "0.9"),
    *("--crop", "112", "--augment.resize", "104", "136", "--augment.jitter", "0.3", "0.3", "0.3", "0.02"),
    *("--eval-every", "4"),
)
"""The same for every method. Rate, epochs, crop and resize were tried on `cam` (eight short runs, val masks). The hue
shift was cut after CPN had been seen on val, because hue tells the generated classes apart."""
METHOD_OPTIONS: dict[str, tuple[str, ...]] = {
    "cam": ("--patch", "grid"),
    "cpn": ("--patch", "superpixel", "--patch.segments", "40"),
}
"""40 segments a crop, since a patch is then about as large as the badge that it should be able to hide;
set after 200 had been seen to give CPN no more than `cam` on val."""


@dataclass(frozen=True)
class DemoConfig:
    """Run the pipeline on generated images: pretrain, train CAM and CPN, score, label, export, label with ONNX, report.

    Attributes:
        seeds: how many seeds of each method are trained.
        output: folder of everything the demo writes; None = runs/demo. What an earlier demo wrote there is removed.
        data: the demo's images, `demo:` or `demo:PATH`.
        max_steps: stop each training after so many steps (a quick trial of the pipeline, its masks are worthless).
        full: go on to the segmentation model by `cpn run` (CPN only, one seed): masks refined by random walk and CRF,
            DeepLab, ONNX; a second call goes on where the first was stopped. Its folder is runs/demo-full by default.
    """

    seeds: int = 1
    output: Path | None = None
    data: str = "demo:"
    max_steps: int | None = None
    full: bool = False

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.output or Path("runs/demo-full" if self.full else "runs/demo")
