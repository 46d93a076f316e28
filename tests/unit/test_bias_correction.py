"""Bias correction: the mean of every output comes back, wherever a graph keeps its biases."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from trimtab.compressors.fusion import build_variants
from trimtab.compressors.graph import build_base_graph, run_with_outputs
from trimtab.compressors.layer_inputs import LayerInputs, collect_layer_inputs
from trimtab.compressors.quantization.bias_correction import correct_bias, correct_graph
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs
from trimtab.compressors.weights.quantized_weights import quantize_weight


def _run(model, inputs):
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def _rounded(model, name, step=0.25):
    """What very coarse integers would stand for."""
    weight = model.graph.initializers[f"{name}.weight"].const_value.numpy()
    step = step * np.abs(weight).max()
    return (np.floor(weight / step) * step).astype(np.float32)  # down, so that there is a mean to correct


def _put(model, name, array):
    value = model.graph.initializers[f"{name}.weight"]
    value.const_value = ir.tensor(array, name=value.name)


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped"])
def test_the_correction_is_the_mean_error_over_all_rows(kind):
    torch.manual_seed(0)
    layer = nn.Linear(6, 8) if kind == "linear" else nn.Conv2d(6, 8, 3, padding=1, groups=2 if kind == "grouped" else 1)
    x = torch.randn(5, 6) + 1 if kind == "linear" else torch.randn(5, 6, 7, 7) + 1
    base = build_base_graph(load_source((nn.Sequential(layer), {"input": x[:1]})), {"input": x[:1].numpy()})
    name = base.layers[0].name
    inputs = collect_layer_inputs(base.model, [name], [{"input": x.numpy()}])[name]
    weight, rounded = base.model.graph.initializers[f"{name}.weight"].const_value.numpy(), _rounded(base.model, name)
    got = correct_bias(weight, rounded, inputs, kind="linear" if kind == "linear" else "conv")
    exact = layer(x).detach()
    layer.weight.data = torch.from_numpy(rounded.T.copy() if kind == "linear" else rounded)
    axes = (0,) if kind == "linear" else (0, 2, 3)
    np.testing.assert_allclose(got, (exact - layer(x)).mean(axes).detach().numpy(), atol=1e-5)


class _Net(nn.Module):
    """Convolutions with and without a bias, a depthwise one, linear layers with and without."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.plain, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x):
        x = self.depthwise(torch.relu(self.second(torch.relu(self.first(x)))))
        return self.head(torch.relu(self.plain(torch.relu(x).mean((2, 3)))))


@pytest.mark.parametrize("name", ["first", "second", "depthwise", "plain", "head"])
def test_the_mean_of_each_output_is_what_it_was(name):
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(0.5, 1, (6, 3, 12, 12)).astype(np.float32)
    base = build_base_graph(load_source((_Net(), {"x": torch.zeros(1, 3, 12, 12)})), {"x": x[:1]})
    statistics = collect_layer_inputs(base.model, [name], [{"x": x}])
    rounded = _rounded(base.model, name)
    corrected, uncorrected = base.model.clone(), base.model.clone()
    correct_graph(corrected.graph, {name: rounded}, statistics)
    _put(corrected, name, rounded)
    _put(uncorrected, name, rounded)

    def mean(model):
        node = next(n for n in model.graph if f"{name}.weight" in [v.name for v in n.inputs if v is not None])
        users = node.outputs[0].consumers()
        is_bias = bool(users) and users[0].op_type == "Add" and node.op_type == "MatMul"
        value = users[0].outputs[0] if is_bias else node.outputs[0]
        array = run_with_outputs(model, [str(value.name)], [{"x": x}])[0][0]
        return array.mean((0, 2, 3)) if array.ndim == 4 else array.mean(0)

    assert np.abs(mean(uncorrected) - mean(base.model)).max() > 1e-3
    np.testing.assert_allclose(mean(corrected), mean(base.model), atol=1e-5)


def test_names_of_values_stay_for_calibrated_ranges_are_kept_by_them():
    base = build_base_graph(
        load_source((_Net(), {"x": torch.zeros(1, 3, 12, 12)})), {"x": np.zeros((1, 3, 12, 12), np.float32)}
    )
    names = [layer.name for layer in base.layers]
    inputs = {"x": random_images()}
    corrected = base.model.clone()
    correct_graph(
        corrected.graph, {n: _rounded(base.model, n) for n in names}, collect_layer_inputs(base.model, names, [inputs])
    )
    before = {output.name for node in base.model.graph for output in node.outputs}
    after = {output.name for node in corrected.graph for output in node.outputs}
    assert before <= after
    assert [o.name for o in corrected.graph.outputs] == [o.name for o in base.model.graph.outputs]
    assert {f"{name}.weight" for name in names} <= set(corrected.graph.initializers)


def random_images():
    return np.random.default_rng(0).normal(size=(4, 3, 12, 12)).astype(np.float32)


def test_weights_that_were_not_rounded_change_nothing(bases):
    base = bases["transformer"]
    names = [layer.name for layer in base.layers if layer.kind == "linear"]
    statistics = collect_layer_inputs(base.model, names, [random_inputs("transformer", 2)])
    corrected = base.model.clone()
    weights = {name: base.model.graph.initializers[f"{name}.weight"].const_value.numpy() for name in names}
    correct_graph(corrected.graph, weights, statistics)
    assert ir.to_proto(corrected).SerializeToString() == ir.to_proto(base.model).SerializeToString()


def test_embeddings_are_passed_over(bases):
    base = bases["transformer"]
    corrected = base.model.clone()
    correct_graph(corrected.graph, {"tokens": _rounded(base.model, "tokens")}, {})
    assert ir.to_proto(corrected).SerializeToString() == ir.to_proto(base.model).SerializeToString()


def test_a_shared_weight_is_corrected_by_the_mean_over_its_uses(bases):
    base, inputs = bases["transformer"], random_inputs("transformer", 4)
    statistics = collect_layer_inputs(base.model, ["twice"], [inputs])
    rounded = _rounded(base.model, "twice")
    weight = base.model.graph.initializers["twice.weight"].const_value.numpy()
    shift = correct_bias(weight, rounded, statistics["twice"], kind="linear")
    corrected = base.model.clone()
    correct_graph(corrected.graph, {"twice": rounded}, statistics)
    adds = [node for node in corrected.graph if node.op_type == "Add" and "twice" in node.name]
    assert len(adds) == 2
    for add in adds:
        np.testing.assert_allclose(add.inputs[1].const_value.numpy(), shift, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("level", ["gelu", "full"])
def test_biases_inside_fused_operators_are_corrected_in_place(bases, level):
    base, inputs = bases["transformer"], random_inputs("transformer", 4)
    variants, _ = build_variants(base, ("none", level), random_inputs("transformer", 1))
    names = ["query", "up", "down", "out"]
    rounded = {name: _rounded(base.model, name) for name in names}
    statistics = collect_layer_inputs(base.model, names, [inputs])
    outputs = []
    for model in (base.model, variants[level]):
        corrected = model.clone()
        n_nodes = len(list(corrected.graph))
        correct_graph(corrected.graph, rounded, statistics)
        assert len(list(corrected.graph)) == n_nodes
        outputs.append(_run(corrected, inputs))
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-4)
    assert np.abs(outputs[0] - _run(base.model, inputs)).max() > 1e-3


def test_the_three_biases_of_a_fused_attention_are_corrected_apart():
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=(8, 8)).astype(np.float32) for n in ("q.weight", "k.weight", "v.weight")}
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 4, 8]))
    weights = {
        n: ir.Value(name=n, const_value=ir.tensor(a, name=n), type=ir.TensorType(ir.DataType.FLOAT))
        for n, a in arrays.items()
    }
    bias = ir.Value(name="bias", const_value=ir.tensor(np.zeros(24, np.float32), name="bias"))
    products = [ir.node("MatMul", [x, weight], name=f"m{i}") for i, weight in enumerate(weights.values())]
    attention = ir.node(
        "MultiHeadAttention", [*(p.outputs[0] for p in products), bias], {"num_heads": 2}, domain="com.microsoft"
    )
    graph = ir.Graph(
        [x], [attention.outputs[0]], nodes=[*products, attention], initializers=[*weights.values(), bias],
        opset_imports={"": 17, "com.microsoft": 1},
    )  # fmt: skip
    inputs = LayerInputs(np.eye(8)[None], np.ones((1, 8)), np.ones((1, 8)))
    correct_graph(graph, {"v": np.zeros((8, 8), np.float32)}, {"v": inputs})
    want = np.concatenate([np.zeros(16), arrays["v.weight"].sum(0)])  # nothing stays of v: its mean is all of it
    np.testing.assert_allclose(attention.inputs[3].const_value.numpy(), want, rtol=1e-5)


def test_int8_weights_of_the_cnn_have_less_bias_afterwards(bases):
    base, inputs = bases["cnn"], random_inputs("cnn", 16)
    names = [layer.name for layer in base.layers]
    rounded = {}
    for layer in base.layers:
        stored = quantize_weight(base.model.graph.initializers[f"{layer.name}.weight"].const_value.numpy(), axis=None)
        rounded[layer.name] = stored.codes * stored.scale
    plain, corrected = base.model.clone(), base.model.clone()
    correct_graph(corrected.graph, rounded, collect_layer_inputs(base.model, names, [inputs]))
    for model in (plain, corrected):
        for name, array in rounded.items():
            _put(model, name, array)
    want = _run(base.model, inputs).mean(0)
    errors = [np.abs(_run(model, inputs).mean(0) - want).max() for model in (plain, corrected)]
    assert errors[1] < errors[0]
