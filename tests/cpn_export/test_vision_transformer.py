"""A vision transformer in ONNX: positions resampled in the graph, in float32, float16 and int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from cpn_export.agreement import Agreement, Outputs
from cpn_export.cam_graph import labeller_graph
from cpn_export.quantization import half_precision, quantised
from cpn_fast.models.backbones.vision_transformer import Architecture, VisionTransformer
from cpn_fast.models.cam import CamNet
from cpn_fast.models.labeller import Labeller

SIZES = ((64, 80), (75, 101), (33, 150), (230, 170))


def session(model: ir.Model, path: Path) -> onnxruntime.InferenceSession:
    ir.save(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_an_exported_transformer_labels_as_the_eager_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    form = Architecture(patch=14, grid=5, registers=2, layer_scale=True, width=24, depth=4, heads=3)
    backbone = VisionTransformer(architecture=form)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    labeller = Labeller(CamNet(backbone, 3, "prcm"), (1.0,), flip=False, beta=0.3)
    parts: list[ir.Model] = []
    whole = labeller_graph(labeller, lambda part: (parts.append(part.clone()), part)[1])
    exported = session(whole, tmp_path / "model.onnx")
    labels, agreement = np.array([[1, 0, 1]], np.float32), Agreement()
    for height, width in SIZES:
        image = np.random.default_rng(height).integers(0, 255, (1, height, width, 3), dtype=np.uint8)
        with torch.inference_mode():
            eager = labeller(torch.from_numpy(image), torch.from_numpy(labels))
        maps, scores, mask = exported.run(None, {"image": image, "labels": labels})
        wanted = Outputs(eager.rcam.numpy(), eager.scores.numpy(), eager.mask.numpy())
        agreement.add(wanted.of(0), Outputs(maps, scores, mask).of(0), 1)
    assert agreement.met and agreement.largest < 1e-4

    def views(height: int, width: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(1, 3, height, width)).astype(np.float32)

    calibration = iter([views(*size, seed) for seed, size in enumerate(SIZES)])
    fewer = {"half": half_precision(parts[0]), "int8": quantised(parts[0], calibration)}
    kinds = {name: {node.op_type for node in model.graph} for name, model in fewer.items()}
    assert "QuantizeLinear" in kinds["int8"] and "QuantizeLinear" not in kinds["half"]
    weights = {
        name: sum(
            value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
        )
        for name, model in (("float", parts[0]), *fewer.items())
    }
    assert weights["half"] < 0.6 * weights["float"] and weights["int8"] < 0.5 * weights["float"]
    plain = session(parts[0], tmp_path / "network.onnx")
    for name, share in (("half", 0.01), ("int8", 0.2)):
        reduced = session(fewer[name], tmp_path / f"{name}.onnx")
        for height, width in SIZES:
            given = {"views": views(height, width, 9)}
            for found, exact in zip(reduced.run(None, given), plain.run(None, given), strict=True):
                assert np.linalg.norm(found - exact) < share * np.linalg.norm(exact), (name, height)
