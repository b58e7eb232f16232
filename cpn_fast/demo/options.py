"""Options of `cpn demo`; free of torch, so that --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Run the pipeline on generated images: pretrain, train CAM and CPN, score, label, export, label with ONNX, report.

    Attributes:
        seeds: how many seeds of each method are trained.
        output: folder of everything the demo writes; None = runs/demo. What an earlier demo wrote there is removed.
        data: the demo's images, `demo:` or `demo:PATH`.
        max_steps: stop each training after so many steps (a quick trial of the pipeline, its masks are worthless).
        full: go on to the segmentation model by `cpn run` (CPN only, one seed): masks refined by random walk and CRF,
            DeepLab, ONNX; rerun it to resume after a stop. Its folder is runs/demo-full by default.
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
