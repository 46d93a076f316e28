"""Low rank in the graph: both runtimes, torch's convolutions, and what becomes of names, biases and shared weights."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.layer_inputs import collect_layer_inputs
from trimtab.compressors.low_rank.factorise import why_not_low_rank
from trimtab.compressors.low_rank.graph_factors import factorise_graph, geometries_of
from trimtab.compressors.source import ModelSource, load_source
from trimtab.compressors.testing import random_inputs
from trimtab.core.errors import PolicyError
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import Target
from trimtab.spaces.treatment import Treatment

HALF = Treatment(rank=0.5)
LAYERS = {
    "cnn": ("stem.0", "left.0", "right.0", "point", "fc"),
    "transformer": ("key", "query", "value", "out", "up", "down", "twice", "head"),
}


def _run(base, inputs):
    content = ir.to_proto(base.model).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def _statistics(base, name):
    inputs = random_inputs(name, 8)
    samples = [{key: array[i : i + 1] for key, array in inputs.items()} for i in range(8)]
    return collect_layer_inputs(base.model, LAYERS[name], samples)


@pytest.fixture(params=LAYERS)
def model(request):
    return request.param


def test_both_runtimes_run_every_form_and_agree(bases, model):
    base = bases[model]
    forms = ("auto", "channel", "spatial", "tucker") if model == "cnn" else ("auto",)
    for form in forms:
        treatment = Treatment(rank=0.6, decomposition=form)
        factored = factorise_graph(base, dict.fromkeys(LAYERS[model], treatment), {})
        artifact = Artifact(ir.to_proto(factored.model).SerializeToString())
        inputs = random_inputs(model, 4, seed=1)
        ours, theirs = (
            build_device(Target(runtime, batch_size=4)).load(artifact).run(inputs)[0]
            for runtime in ("onnxruntime", "openvino")
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_outputs_stay_nearer_with_more_rank_and_nearer_still_with_calibration(bases, model):
    base, inputs = bases[model], random_inputs(model, 8)
    want, statistics = _run(base, inputs), _statistics(base, model)

    def distance(**fields):
        factored = factorise_graph(base, dict.fromkeys(LAYERS[model], Treatment(**fields)), statistics)
        return float(((_run(factored, inputs) - want) ** 2).mean())

    assert distance(rank=0.7) < distance(rank=0.4)
    assert distance(rank=0.7, rank_error="output") < distance(rank=0.7)


def test_the_graph_that_was_given_is_left_alone(bases, model):
    before = ir.to_proto(bases[model].model).SerializeToString()
    factorise_graph(bases[model], dict.fromkeys(LAYERS[model], HALF), {})
    assert ir.to_proto(bases[model].model).SerializeToString() == before


def test_layers_that_are_not_named_or_keep_their_rank_stay(bases):
    base = bases["cnn"]
    same = factorise_graph(base, {"fc": Treatment(weight_dtype="int8")}, {})
    assert same.layers == base.layers
    some = factorise_graph(base, {"fc": HALF}, {})
    names = [layer.name for layer in some.layers]
    assert names == ["stem.0", "left.0", "right.0", "depthwise.0", "point", "fc.0", "fc.1"]
    assert some.layers[:5] == base.layers[:5]


def test_layers_and_shapes_are_those_that_reading_the_graph_anew_finds(bases, model):
    factored = factorise_graph(bases[model], dict.fromkeys(LAYERS[model], HALF), {})
    content = ir.to_proto(factored.model).SerializeToString()
    parameters = {
        name: value.const_value.numpy()
        for name, value in factored.model.graph.initializers.items()
        if name.endswith(".weight")
    }
    again = build_base_graph(ModelSource(content, parameters), random_inputs(model, 1))
    assert {layer.name: layer for layer in factored.layers} == {layer.name: layer for layer in again.layers}
    assert all(factored.shapes[name] == shape for name, shape in again.shapes.items() if name in factored.shapes)
    outputs = [node.outputs[0].name for node in factored.model.graph if node.op_type in ("Conv", "MatMul")]
    assert set(outputs) <= set(factored.shapes)


def test_a_shared_weight_shares_its_factors(bases):
    factored = factorise_graph(bases["transformer"], {"twice": HALF}, {})
    first, second = (factored.model.graph.initializers[f"twice.{i}.weight"] for i in range(2))
    assert (len(first.uses()), len(second.uses())) == (2, 2)
    assert {layer.name: layer.macs for layer in factored.layers}["twice.0"] == 2 * 12 * 32 * 8


def test_a_bias_stays_with_the_last_factor(bases):
    base = bases["cnn"]
    bias = base.model.graph.initializers["point.bias"].const_value.numpy()
    factored = factorise_graph(base, {"point": HALF}, {})
    first, last = (factored.model.graph.initializers[f"point.{i}.weight"].consumers()[0] for i in range(2))
    assert len(first.inputs) == 2
    np.testing.assert_array_equal(last.inputs[2].const_value.numpy(), bias)


# -- against torch --------------------------------------------------------------------------------


class _Net(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


def _low_rank_weight(rng, form, n_out, n_in, kernel):
    if form == "channel":
        return np.einsum("rikl,or->oikl", rng.normal(size=(2, n_in, *kernel)), rng.normal(size=(n_out, 2)))
    if form == "spatial":
        return np.einsum("riy,orx->oiyx", rng.normal(size=(2, n_in, kernel[0])), rng.normal(size=(n_out, 2, kernel[1])))
    parts = rng.normal(size=(2, n_in)), rng.normal(size=(2, 2, *kernel)), rng.normal(size=(n_out, 2))
    return np.einsum("ri,srkl,os->oikl", *parts)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_convolution_that_has_the_rank_gives_what_torch_gives(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    form = data.draw(st.sampled_from(["channel", "spatial", "tucker"]))
    most = 1 if form == "tucker" else 2  # what runs before a stride runs on every place
    kernel, stride = (draw(2, 3), draw(2, 3)), (draw(1, most), draw(1, most))
    conv = nn.Conv2d(10, 12, kernel, stride, (draw(0, 2), draw(0, 2)), (draw(1, 2), draw(1, 2)))
    weight = _low_rank_weight(np.random.default_rng(draw(0, 99)), form, 12, 10, kernel)
    conv.weight.data = torch.from_numpy(weight.astype(np.float32))
    x = torch.randn(1, 10, draw(9, 12), draw(9, 12))
    base = build_base_graph(load_source((_Net(conv), {"x": x})), {"x": x.numpy()})
    treatment = Treatment(rank=0.45, decomposition=form)
    factored = factorise_graph(base, {"conv": treatment}, {})
    assert len(factored.layers) == (3 if form == "tucker" else 2)
    want = conv(x).detach().numpy()
    np.testing.assert_allclose(_run(factored, {"x": x.numpy()}), want, atol=2e-5 * np.abs(want).max())


def test_automatic_padding_splits_by_axis():
    rng = np.random.default_rng(0)
    weight = _low_rank_weight(rng, "spatial", 12, 10, (3, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 3], kernel_shape=[3, 5])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 10, 11, 14])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = {"x": rng.normal(size=(1, 10, 11, 14)).astype(np.float32)}
    base = build_base_graph(ModelSource(model.SerializeToString()), x)
    factored = factorise_graph(base, {"w": Treatment(rank=0.45, decomposition="spatial")}, {})
    assert [layer.weight_shape[2:] for layer in factored.layers] == [(3, 1), (1, 5)]
    np.testing.assert_allclose(_run(factored, x), _run(base, x), atol=1e-4)


def test_sound_is_taken_apart_by_channels():
    conv = nn.Conv1d(8, 12, 5, stride=2, padding=3, dilation=2)
    weight = np.einsum(
        "rik,or->oik", *(np.random.default_rng(i).normal(size=s) for i, s in enumerate([(2, 8, 5), (12, 2)]))
    )
    conv.weight.data = torch.from_numpy(weight.astype(np.float32))
    x = torch.randn(1, 8, 30)
    base = build_base_graph(load_source((_Net(conv), {"x": x})), {"x": x.numpy()})
    factored = factorise_graph(base, {"conv": HALF}, {})
    assert [layer.weight_shape[2:] for layer in factored.layers] == [(5,), (1,)]
    np.testing.assert_allclose(_run(factored, {"x": x.numpy()}), conv(x).detach().numpy(), atol=1e-4)


def test_multiply_accumulates_are_those_that_torch_counts():
    x = torch.zeros(1, 8, 13, 17)
    conv = nn.Conv2d(8, 16, 3, stride=(2, 1), padding=(0, 1), bias=False)
    base = build_base_graph(load_source((_Net(conv), {"x": x})), {"x": x.numpy()})
    factored = factorise_graph(base, {"conv": Treatment(rank=0.5, decomposition="spatial")}, {})
    row = nn.Sequential(
        nn.Conv2d(8, 8, (3, 1), (2, 1), (0, 0), bias=False), nn.Conv2d(8, 16, (1, 3), (1, 1), (0, 1), bias=False)
    )
    for layer, part in zip(factored.layers, row, strict=True):
        with FlopCounterMode(display=False) as counter:
            x = part(x)
        assert layer.macs == counter.get_total_flops() // 2
        assert layer.output_shape == (-1, *x.shape[1:])


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("depthwise.0", r"layer depthwise\.0: low rank exists for convolutions of one group, and this one has 8"),
        ("nothing", r"the model has no layer nothing; it has depthwise\.0, fc"),
    ],
)
def test_a_layer_that_cannot_be_taken_apart_is_named(bases, name, reason):
    with pytest.raises(PolicyError, match=reason):
        factorise_graph(bases["cnn"], {name: HALF}, {})


def test_the_graph_tells_of_groups_and_strides_before_anything_is_built():
    net = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 16, 3, stride=4), nn.Flatten(), nn.Linear(64, 9))
    x = torch.zeros(1, 16, 10, 10)
    base = build_base_graph(load_source((net, {"input": x})), {"input": x.numpy()})
    grouped, strided, linear = geometries_of(base).values()
    spatial = Treatment(rank=0.8, decomposition="spatial")
    assert "one group, and this one has 4" in why_not_low_rank(grouped, HALF)
    # 3×1 on 2 × 8 places and 1×3 on 2 × 2 with rank 19: 19·16·3·(16 + 4) = 18240 over 16·16·9·4 = 9216
    assert strided.sides == (8, 8)
    assert "takes 1.98 times the layer's own multiply-accumulates" in why_not_low_rank(strided, spatial)
    assert why_not_low_rank(strided, HALF) is None
    assert linear.weight_shape == (64, 9)


def test_an_embedding_has_no_low_rank(bases):
    with pytest.raises(PolicyError, match=r"layer tokens: .* this is a layer of kind embedding"):
        factorise_graph(bases["transformer"], {"tokens": HALF}, {})


def test_by_output_needs_what_enters_the_layer(bases):
    with pytest.raises(PolicyError, match="layer fc: low rank by output needs calibration data"):
        factorise_graph(bases["cnn"], {"fc": Treatment(rank=0.5, rank_error="output")}, {})


def test_a_name_that_is_taken_is_refused():
    rng = np.random.default_rng(0)
    arrays = {"a.weight": rng.normal(size=(16, 16)), "a.0.weight": rng.normal(size=(16, 16))}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a.weight"], ["h"]), helper.make_node("MatMul", ["h", "a.0.weight"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    base = build_base_graph(ModelSource(model.SerializeToString()), {"x": np.zeros((1, 16), np.float32)})
    with pytest.raises(PolicyError, match=r"a factor would be called a\.0, as another layer is already"):
        factorise_graph(base, {"a": HALF}, {})


def test_a_copy_of_a_tied_weight_keeps_its_number_at_the_end():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 16)
            self.out = nn.Linear(16, 20, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids):
            return self.out(self.words(ids))

    ids = torch.zeros(1, 3, dtype=torch.long)
    base = build_base_graph(load_source((Tied(), {"ids": ids})), {"ids": ids.numpy()})
    assert [layer.name for layer in base.layers] == ["words", "words#2"]
    factored = factorise_graph(base, {"words#2": HALF}, {})
    assert [layer.name for layer in factored.layers] == ["words", "words.0#2", "words.1#2"]
