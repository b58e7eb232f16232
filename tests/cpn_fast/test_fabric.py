"""A training begins without torchmetrics and scipy, which Lightning imports for a version number."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

pytest.importorskip("lightning_fabric", reason="needs the [train] packages")

CODE = """
import json, sys
from cpn_fast.fabric import Fabric
from lightning_fabric.utilities.imports import _TORCHMETRICS_GREATER_EQUAL_1_0_0 as told
begun = [name for name in ("torchmetrics", "scipy") if name in sys.modules]
import torchmetrics
from torchmetrics.functional.classification import binary_accuracy
import torch
right = float(binary_accuracy(torch.tensor([1, 0, 1, 1]), torch.tensor([1, 0, 0, 1])))
print(json.dumps([begun, told, torchmetrics.__version__, right, Fabric.__module__]))
"""


@pytest.mark.slow
def test_it_is_not_imported_and_can_be_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    expected = [[], True, version("torchmetrics"), 0.75, "lightning_fabric.fabric"]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
