"""Settings of the process that a training makes before anything else."""

from __future__ import annotations

import pytest
import torch

from cpn_fast.cam.task import CamTask
from cpn_fast.config.training import DeviceOptions, TrainConfig
from cpn_fast.training.run import run_training


@pytest.mark.parametrize("asked", [True, False])
def test_cudnn_searches_where_it_is_asked_to(asked, monkeypatch, tmp_path):
    def stop(config):
        raise InterruptedError("far enough")

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not asked)
    monkeypatch.setattr("cpn_fast.training.run.check_ranges", stop)
    config = TrainConfig("demo:", tmp_path / "run", device=DeviceOptions(cudnn_benchmark=asked))
    with pytest.raises(InterruptedError):
        run_training(config, CamTask)
    assert torch.backends.cudnn.benchmark is asked
