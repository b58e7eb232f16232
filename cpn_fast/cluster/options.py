"""Options of commands whose images may be done on a cluster; free of torch and Ray, so that --help is there at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import LOCAL, Engine


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Base of the settings of commands that work through images one by one.

    Attributes:
        engine: where the images are done: "local", in this process, or "ray", by the workers of a Ray cluster
            (`cpn-fast[ray]`).
        ray_address: of the cluster, `HOST:PORT` or "auto"; None = one on this machine is started for the command.
        workers_per_node: of --engine ray, processes on each machine, which share its cores and GPUs; None = one for
            each GPU, or one.
    """

    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    workers_per_node: int | None = None

    @property
    def on_cluster(self) -> bool:
        """Whether the images are done by workers elsewhere, so that this process needs no network on its device."""
        return self.engine == "ray"

    def open_engine(self) -> Engine:
        """What does the images. Raises DataError for options that do not fit, or where Ray is not installed."""
        if not self.on_cluster:
            for name in ("ray_address", "workers_per_node"):
                if getattr(self, name) is not None:
                    raise DataError(f"--{name.replace('_', '-')}: an option of --engine ray; give that too")
            return LOCAL
        if self.workers_per_node is not None and self.workers_per_node < 1:
            raise DataError(f"--workers-per-node {self.workers_per_node}: expected at least 1")
        from cpn_fast.cluster.ray_engine import RayEngine, check_installed

        check_installed()
        return RayEngine(self.ray_address, self.workers_per_node)
