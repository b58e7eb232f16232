"""`cpn export` itself: options, and networks of other kinds than the trained one."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] packages")

import onnxruntime  # noqa: E402
from torch import nn  # noqa: E402

from cpn_export.cam_graph import labeller_graph  # noqa: E402
from cpn_export.graph_surgery import trace_network  # noqa: E402
from cpn_export.to_onnx import ExportConfig, run_export  # noqa: E402
from cpn_fast.cli.main import main as cpn  # noqa: E402
from cpn_fast.config.refine import OF_PIXEL_HEAD, PER_SCALE, PIXELS, RefineOptions  # noqa: E402
from cpn_fast.files.errors import DataError  # noqa: E402
from cpn_fast.models.backbones import Backbone  # noqa: E402
from cpn_fast.models.backbones.common import relu6_  # noqa: E402
from cpn_fast.models.cam import CamNet  # noqa: E402
from cpn_fast.models.labeller import Labeller  # noqa: E402


class SmallBackbone(Backbone):
    """Three convolutions, stride 8, mid at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.strides = (8, 8, 12), (4, 8, 8)
        self.first = nn.Conv2d(3, 8, 5, 4, 2)
        self.second = nn.Conv2d(8, 8, 3, 2, 1)
        self.third = nn.Conv2d(8, 12, 3, 1, 1)
        self.initialise(frozen=True)

    def forward(self, x):
        mid = self.first(x).relu()
        high = self.second(mid).relu()
        return mid, high, self.third(high).relu()


@pytest.mark.parametrize(
    ("refinement", "map_norm", "flip", "scales", "refine", "side"),
    [
        ("none", "max", True, (1.0,), PER_SCALE, None),
        ("pcm", "minmax", True, (1.0,), PER_SCALE, None),
        ("none", "minmax", True, (0.75, 1.5), RefineOptions("raw", "fused"), 72),
        pytest.param(
            "none", "minmax", False, (0.5, 1.0), RefineOptions("raw", "scale", 1.5), None, marks=pytest.mark.slow
        ),
        ("none", "minmax", True, (0.75, 1.0), PIXELS, 72),
        ("pcm", "minmax", False, (1.0,), RefineOptions("pixels", "fused"), None),
        pytest.param("pcm", "minmax", True, (0.75, 1.5), RefineOptions("learnt", "fused"), 72, marks=pytest.mark.slow),
        pytest.param("prcm_released", "minmax", False, (0.75,), PER_SCALE, None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_every_kind_of_network(refinement, map_norm, flip, scales, refine, side, tmp_path):
    import onnx_ir

    torch.manual_seed(3)
    released = refinement == "prcm_released"
    readings = {"score_resolution": "input", "winner_classes": "all"} if released else {}
    net = CamNet(SmallBackbone(), 4, refinement, **readings, pixel_head=refine.refine in OF_PIXEL_HEAD)
    net.mean.copy_(torch.tensor([0.4, 0.5, 0.3]))
    if net.pixels is not None:
        nn.init.normal_(net.pixels.weight)
    resize = "bicubic" if released else "bilinear"
    labeller = Labeller(net, scales, flip, 0.4, 0.5, map_norm, resize, refine, side)
    onnx_ir.save(labeller_graph(labeller), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for shape in ((2, 64, 80), (1, 33, 131), (1, 7, 7)):
        rng = np.random.default_rng(1)
        images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        labels = (rng.random((shape[0], 4)) < 0.6).astype(np.float32)
        labels[0] = -1
        with torch.no_grad():
            eager = labeller(torch.from_numpy(images), torch.from_numpy(labels))
        rcam, scores, mask = session.run(["rcam", "scores", "mask"], {"image": images, "labels": labels})
        np.testing.assert_allclose(scores, eager.scores.numpy(), atol=1e-5)
        assert (np.abs(rcam - eager.rcam.numpy()) <= 1e-3).mean() >= 0.999
        assert (mask == eager.mask.numpy()).mean() >= 0.995
        if min(shape[1:]) >= 33:
            assert mask.any() and eager.rcam.numpy().max() > 0.9


def test_relu6_is_one_operator_of_the_graph(tmp_path):
    import onnx_ir

    class Bounded(nn.Module):
        def forward(self, views):
            return relu6_(views * 2)

    graph = trace_network(Bounded(), ["logits"])
    assert [node.op_type for node in graph.graph] == ["Mul", "Clip"]
    onnx_ir.save(graph, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    row = np.array([-1, 0, 0.25, 2.75, 3, 3.5, 100], np.float32)
    (found,) = session.run(None, {"views": np.tile(row, (1, 3, 5, 1))})
    assert (found == np.array([0, 0, 0.5, 5.5, 6, 6, 6], np.float32)).all() and found.shape == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 1.5}, "--beta 1.5"),
        ({"threshold": -0.1}, "--threshold -0.1"),
        ({"scales": ()}, "--scales is empty"),
        ({"scales": (1.0, 0.333)}, "--scales has 0.333"),
        ({"max_side": 0}, "--max-side is 0"),
    ],
)
def test_options_out_of_range(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        run_export(ExportConfig(tmp_path, tmp_path / "m.onnx", **changes))


def test_no_run_there(tmp_path, capsys):
    assert cpn(["export", str(tmp_path / "nothing"), "--output", str(tmp_path / "m.onnx")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_what_takes_long_is_said_before_it_begins(make_run, tmp_path, monkeypatch):
    said = []

    class Listener:
        def say(self, what: object) -> None:
            said.append(str(what))

    def traced(*_: object) -> None:
        assert said, "said before the network is traced"
        raise DataError("far enough")

    monkeypatch.setattr("cpn_export.to_onnx._export_cam", traced)
    run = make_run(tmp_path / "run", weights=False)
    with pytest.raises(DataError, match="far enough"):
        run_export(ExportConfig(run.path, tmp_path / "model.onnx"), Listener())
    assert "tracing the network" in said[0] and "model.onnx" in said[0]
