from itertools import product
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.evaluators.device import build_device
from trimtab.experiments.activation_flow import Rules
from trimtab.experiments.activation_steps import read_flow
from trimtab.experiments.activations import find_moments, known_activations
from trimtab.hw_profiles.liveness import measure_liveness
from trimtab.hw_profiles.target import Target
from trimtab.spaces.layer import Group
from trimtab.spaces.space import GraphOptions, Space
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment

NONE, INT8 = QUANTIZE_OPTIONS["none"], QUANTIZE_OPTIONS["int8"]
#: a runtime without layouts of its own that writes codes only where all readers take them
PLAIN = Rules(codes_leave_convolutions=False, has_own_layout=False)


def three_layers():
    """x (256) → a (1024) → Relu → b (2048) → c (512): each a convolution of 1 x 1 over 8 x 8 pixels."""
    sides = {"a": (16, 4), "b": (32, 16), "c": (8, 32)}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "a.weight"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["relu"]),
        onnx.helper.make_node("Conv", ["relu", "b.weight"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "c.weight"], ["c"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.ones((*shape, 1, 1), np.float32), f"{n}.weight") for n, shape in sides.items()
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, n, 8, 8])
        for name, n in (("x", 4), ("c", 8))
    ]
    graph = onnx.helper.make_graph(nodes, "three", ends[:1], ends[1:], weights)
    return ir.from_proto(onnx.helper.make_model(graph)).graph


ARRAYS = {
    name: np.zeros((1, n, 8, 8), np.float32) for name, n in (("x", 4), ("a", 16), ("relu", 16), ("b", 32), ("c", 8))
}
LAYERS = {"a": 0, "b": 1, "c": 2}


def space_of(*options, extra=()):
    groups = [Group(name, (name,)) for name in LAYERS]
    return Space((*groups, *extra), options, GraphOptions())


def peak(moments, *vector):
    return max(float(moment.value(np.array([vector]))[0]) for moment in moments)


@pytest.fixture
def flow():
    return read_flow(three_layers(), LAYERS, ARRAYS, PLAIN, depth_first=False)


def test_what_works_in_place_is_no_step_of_its_own(flow):
    assert [step.op for step in flow.steps] == ["Conv", "Conv", "Conv"]


def test_the_peak_of_three_layers_is_what_pencil_and_paper_give(flow):
    moments = find_moments(flow, space_of(*[(NONE, INT8)] * 3))
    x, a, b, c = 4 * 256, 4 * 1024, 4 * 2048, 4 * 512
    # all float: while b runs, its input and its output stand beside the caller's x
    assert peak(moments, 0, 0, 0) == x + a + b
    # a and b write codes for b and c
    assert peak(moments, 1, 1, 1) == x + max(256 + a / 4, a / 4 + b / 4, b / 4 + c)
    # b alone reads codes, which are made of a's float output; b is followed by a float layer
    assert peak(moments, 0, 1, 0) == x + max(a + a / 4, a / 4 + b, b + c)
    # b writes float, of which codes are made for c
    assert peak(moments, 0, 0, 1) == x + max(a + b, b + b / 4, b / 4 + c)


def test_channels_that_are_pruned_take_no_bytes(flow):
    structure = Group("channels:b", ("b", "c"), "channels")
    keeps = (Treatment(), Treatment(keep_channels=0.5))
    space = space_of((NONE,), (NONE,), (NONE,), keeps, extra=(structure,))
    moments = find_moments(flow, space, {"b": (3, np.array([1.0, 0.5]))})
    assert peak(moments, 0, 0, 0, 0) == 4 * (256 + 1024 + 2048)
    assert peak(moments, 0, 0, 0, 1) == 4 * (256 + 1024 + 1024)


def test_a_moment_that_is_never_the_peak_is_dropped(flow):
    moments = find_moments(flow, space_of(*[(NONE,)] * 3))
    assert [peak([moment], 0, 0, 0) for moment in moments] == [4 * (256 + 1024 + 2048)]


def test_a_fusion_that_the_model_lacks_has_no_known_moments(prepared, caplog):
    preparation = SimpleNamespace(
        model=prepared["cnn"],
        space=Space((), (), GraphOptions(fusion=("attention",))),
        device=build_device(Target("onnxruntime", "cpu", threads=1, batch_size=1)),
    )
    with caplog.at_level("INFO"):
        assert known_activations(preparation) == ()
    assert "not known beforehand" in caplog.text


class Residual(nn.Module):
    """A stem, a residual block and a head; blocks of 16 channels, as float convolutions want them."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.second, self.head = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.fc(self.head(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    torch.manual_seed(0)
    return prepare_model(load_source(lambda: (Residual().eval(), {"x": torch.zeros(2, 3, 16, 16)})), {"x": images})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_known_peaks_are_those_of_lowered_graphs(residual, runtime):
    device = build_device(Target(runtime))
    groups = tuple(Group(layer.name, (layer.name,)) for layer in residual.layers)
    space = Space(groups, ((NONE, INT8),) * len(groups), GraphOptions())
    moments = known_activations(SimpleNamespace(model=residual, space=space, device=device))
    pipeline = Pipeline(residual, device.capabilities)
    every = np.array(list(product((0, 1), repeat=len(groups))))[::3]
    known = np.max([moment.value(every) for moment in moments], axis=0)
    measured = []
    for vector in every:
        policy = space.decode((*vector, *[0] * (len(space.dimensions) - len(groups))))
        artifact = pipeline.build(space.layer_treatments(policy), space.default_graph)
        measured.append(measure_liveness(device.lower(artifact), alignment=64).peak_bytes)
    assert spearmanr(known, measured).statistic >= 0.9
    assert np.abs(known / measured - 1).mean() <= 0.05
    assert np.abs(known / measured - 1).max() <= 0.2
