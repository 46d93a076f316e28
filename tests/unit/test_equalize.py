"""Scales moved between layers: outputs stay, ranges become even, and outliers leave the activations."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional
from trimtab.compressors.fusion import build_variants
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.layer_inputs import LayerInputs, collect_layer_inputs
from trimtab.compressors.quantization.equalize import equalize_layers, smooth
from trimtab.compressors.source import ModelSource, load_source
from trimtab.compressors.testing import random_inputs
from trimtab.compressors.weights.quantized_weights import quantize_weight


def _run(model, inputs):
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def _weight(model, layer):
    return model.graph.initializers[f"{layer}.weight"].const_value.numpy()


def _base(module, x, seed=0):
    """The base graph of a module whose channels have very different scales, and its inputs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        rows = torch.exp(2 * torch.randn(len(parameter), generator=generator))
        parameter.data = torch.randn(parameter.shape, generator=generator) * rows.reshape(
            -1, *[1] * (parameter.ndim - 1)
        )
    source = load_source((module.eval(), {"x": x[:1]}))
    return build_base_graph(source, {"x": x[:1].numpy()})


class _Convolutions(nn.Module):
    """A dense, a strided depthwise, a pointwise and, behind a pool, a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False)
        self.point = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 6, 3, groups=3)

    def forward(self, x):
        x = functional.relu(self.dense(x))
        x = functional.leaky_relu(self.depthwise(x))
        return self.grouped(functional.max_pool2d(self.point(x), 2))


class _Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 5)

    def forward(self, x):
        return self.down(functional.relu(self.up(x)))


_SEEDED = torch.Generator().manual_seed(0)
IMAGES, ROWS = torch.randn(4, 3, 16, 16, generator=_SEEDED), torch.randn(4, 7, 12, generator=_SEEDED)


def _ranges_out(weight):
    return np.abs(weight).reshape(len(weight), -1).max(1)


# -- cross-layer equalisation ---------------------------------------------------------------------


@pytest.mark.parametrize(("module", "x", "n_changes"), [(_Convolutions, IMAGES, 3), (_Mlp, ROWS, 1)])
def test_equalising_leaves_the_outputs(module, x, n_changes):
    base = _base(module(), x)
    found = equalize_layers(base.model)
    want = _run(base.model, {"x": x.numpy()})
    assert found.n_changes == n_changes
    np.testing.assert_allclose(_run(found.model, {"x": x.numpy()}), want, atol=1e-5 * np.abs(want).max())


def test_afterwards_both_sides_of_a_channel_have_equal_ranges():
    # the optimum of the paper's equation 9; along a chain it holds for every pair at once
    model = equalize_layers(_base(_Convolutions(), IMAGES).model).model
    dense, depthwise, point, grouped = (_weight(model, n) for n in ("dense", "depthwise", "point", "grouped"))
    np.testing.assert_allclose(_ranges_out(dense), _ranges_out(depthwise), rtol=0.01)
    np.testing.assert_allclose(_ranges_out(depthwise), np.abs(point).max((0, 2, 3)), rtol=0.01)
    inner = np.abs(grouped.reshape(3, 2, 4, -1)).max((1, 3)).ravel()  # each group has four inputs and two outputs
    np.testing.assert_allclose(_ranges_out(point), inner, rtol=0.01)


def test_one_scale_per_tensor_rounds_better_afterwards():
    base = _base(_Convolutions(), IMAGES)
    want = _run(base.model, {"x": IMAGES.numpy()})

    def error(model):
        rounded = model.clone()
        for name in ("dense", "depthwise", "point", "grouped"):
            stored = quantize_weight(_weight(model, name), axis=None)
            value = rounded.graph.initializers[f"{name}.weight"]
            value.const_value = ir.tensor(stored.codes * stored.scale, name=value.name)
        return np.square(_run(rounded, {"x": IMAGES.numpy()}) - want).mean()

    assert error(equalize_layers(base.model).model) < error(base.model) / 2


def test_channels_that_are_switched_off_stay_so():
    module = _Mlp()
    base = _base(module, ROWS)
    weight = base.model.graph.initializers["up.weight"]
    array = weight.const_value.numpy().copy()
    array[:, 3] = 0
    weight.const_value = ir.tensor(array, name=weight.name)
    found = equalize_layers(base.model)
    assert np.isfinite(_weight(found.model, "down")).all()
    np.testing.assert_array_equal(_weight(found.model, "up")[:, 3], 0)
    np.testing.assert_array_equal(_weight(found.model, "down")[3], _weight(base.model, "down")[3])


def test_what_is_read_twice_or_bent_or_shared_is_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.twice = (nn.Linear(12, 12) for _ in range(4))

        def forward(self, x):
            x = self.a(x)
            x = x + self.b(x)  # ``a`` is read twice
            x = self.c(torch.sigmoid(self.b(x)))
            return self.twice(self.twice(x))

    base = _base(Net(), ROWS)
    found = equalize_layers(base.model)
    assert found.n_changes == 0
    for name, value in base.model.graph.initializers.items():
        np.testing.assert_array_equal(
            found.model.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )


def test_the_graphs_that_were_given_are_left_alone(bases):
    for name, base in bases.items():
        before = ir.to_proto(base.model).SerializeToString()
        inputs = _collect(base, random_inputs(name, 2))
        equalize_layers(base.model)
        smooth(base.model, inputs)
        assert ir.to_proto(base.model).SerializeToString() == before


@pytest.mark.parametrize(("name", "n_changes"), [("cnn", 2), ("transformer", 0)])
def test_the_small_models_keep_their_outputs(bases, name, n_changes):
    # of the CNN left → right and depthwise → point; the others end in an addition, two readers, or a flattening
    found, inputs = equalize_layers(bases[name].model), random_inputs(name, 4)
    assert found.n_changes == n_changes
    np.testing.assert_allclose(_run(found.model, inputs), _run(bases[name].model, inputs), atol=1e-4)


def test_biases_that_two_layers_share_are_copied():
    # exporters store equal constants once
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.normal(size=(8, 8)) * np.exp(rng.normal(size=8)) for i in range(3)}
    arrays["b"] = rng.normal(size=8)
    nodes, value = [], "x"
    for i in range(3):
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", "b"], [f"y{i}"]),
        ]
        value = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [2, 8])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inputs = {"x": rng.normal(size=(2, 8)).astype(np.float32)}
    base = build_base_graph(ModelSource(model.SerializeToString()), {"x": inputs["x"]})
    found = equalize_layers(base.model)
    assert found.n_changes == 2
    want = _run(base.model, inputs)
    np.testing.assert_allclose(_run(found.model, inputs), want, atol=1e-5 * np.abs(want).max())


# -- smoothing ------------------------------------------------------------------------------------


def _collect(base, inputs):
    names = [layer.name for layer in base.layers if layer.kind != "embedding"]
    return collect_layer_inputs(base.model, names, [inputs])


class _PreNorm(nn.Module):
    """Two linear layers that alone read a layer norm, then a norm that the residual stream reads too, then Relu."""

    def __init__(self):
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.left, self.right = nn.Linear(12, 12), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x):
        y = self.norm(x)
        x = self.norm2(x + torch.tanh(self.left(y)) * self.right(y))
        return x + self.down(functional.relu(self.up(x)))


@pytest.fixture(scope="module")
def pre_norm():
    base = _base(_PreNorm(), ROWS)
    return base, _collect(base, {"x": ROWS.numpy()})


def test_smoothing_leaves_the_outputs(pre_norm):
    base, inputs = pre_norm
    found, want = smooth(base.model, inputs), _run(base.model, {"x": ROWS.numpy()})
    assert found.n_changes == 3
    np.testing.assert_allclose(_run(found.model, {"x": ROWS.numpy()}), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_scales_are_those_of_the_papers_equation(pre_norm, alpha):
    base, inputs = pre_norm
    found = smooth(base.model, inputs, alpha=alpha)
    after = _collect(type(base)(found.model, base.layers, base.shapes), {"x": ROWS.numpy()})
    for names in (("left", "right"), ("up",)):
        peak = inputs[names[0]].peak[0]
        weight = np.max([np.abs(_weight(base.model, name)).max(1) for name in names], axis=0)
        scale = peak**alpha / weight ** (1 - alpha)
        for name in names:
            np.testing.assert_allclose(after[name].peak[0], peak / scale, rtol=1e-4)
            if name != "up":  # whose outputs are divided for the sake of ``down``
                want = _weight(base.model, name) * scale[:, None]
                np.testing.assert_allclose(_weight(found.model, name), want, rtol=1e-5)


def test_half_of_the_difficulty_each_makes_activations_and_weights_alike(pre_norm):
    # equation 4 with α = 0.5: max|x / s| = max|w · s| = √(max|x| · max|w|)
    base, inputs = pre_norm
    found = smooth(base.model, inputs)
    after = _collect(type(base)(found.model, base.layers, base.shapes), {"x": ROWS.numpy()})
    both = np.max([np.abs(_weight(found.model, name)).max(1) for name in ("left", "right")], axis=0)
    np.testing.assert_allclose(after["left"].peak[0], both, rtol=1e-4)
    is_alive = inputs["down"].peak[0] > 0  # behind a Relu some never are
    down = np.abs(_weight(found.model, "down")).max(1)
    np.testing.assert_allclose(after["down"].peak[0][is_alive], down[is_alive], rtol=1e-4)


def test_only_where_the_residual_stream_reads_along_a_node_is_added(pre_norm):
    base, inputs = pre_norm
    found = smooth(base.model, inputs)
    count = lambda model, op: sum(node.op_type == op for node in model.graph)  # noqa: E731
    assert count(found.model, "Mul") == count(base.model, "Mul") + 1
    assert len(list(found.model.graph)) == len(list(base.model.graph)) + 1


def test_the_blocks_of_bert_are_smoothed_in_front_of_their_linear_layers(bases):
    # ``norm`` has a reader in the residual stream; behind ``norm2`` the weight of ``twice`` is read twice
    base, inputs = bases["transformer"], random_inputs("transformer", 4)
    found = smooth(base.model, _collect(base, inputs))
    assert found.n_changes == 1
    np.testing.assert_allclose(_run(found.model, inputs), _run(base.model, inputs), atol=1e-4)


def test_a_network_without_layer_norms_has_nothing_to_smooth(bases):
    base = bases["cnn"]
    assert smooth(base.model, _collect(base, random_inputs("cnn", 1))).n_changes == 0


def test_layers_without_statistics_stay(pre_norm):
    base, inputs = pre_norm
    found = smooth(base.model, {name: inputs[name] for name in ("left", "up", "down")})
    assert found.n_changes == 2  # left and right share what they read
    np.testing.assert_array_equal(_weight(found.model, "left"), _weight(base.model, "left"))


def test_fused_layer_norms_are_smoothed_too(bases):
    base, inputs = bases["transformer"], random_inputs("transformer", 4)
    variants, _ = build_variants(base, ("full",), random_inputs("transformer", 1))
    assert "SkipLayerNormalization" in {node.op_type for node in variants["full"].graph}
    found = smooth(variants["full"], _collect(base, inputs))
    assert found.n_changes == 1
    np.testing.assert_allclose(_run(found.model, inputs), _run(base.model, inputs), atol=1e-4)


def test_a_layer_norm_that_was_taken_apart_takes_the_scales():
    # as exporters wrote it before opset 17: … → Mul by the scale → Add of the bias
    rng = np.random.default_rng(0)
    arrays = {"scale": rng.normal(size=8), "bias": rng.normal(size=8), "w": rng.normal(size=(8, 6))}
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["normed"]),
        helper.make_node("MatMul", ["normed", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 6])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inputs = {"x": rng.normal(size=(3, 8)).astype(np.float32)}
    base = build_base_graph(ModelSource(model.SerializeToString()), inputs)
    found = smooth(base.model, _collect(base, inputs))
    assert found.n_changes == 1
    assert [node.op_type for node in found.model.graph] == [node.op_type for node in base.model.graph]
    np.testing.assert_allclose(_run(found.model, inputs), _run(base.model, inputs), atol=1e-4)
    np.testing.assert_allclose(
        found.model.graph.initializers["bias"].const_value.numpy() * np.abs(_weight(found.model, "w")).max(1),
        arrays["bias"] * np.abs(arrays["w"]).max(1),
        rtol=1e-4,
    )


def test_inputs_that_never_move_keep_a_scale_of_one(pre_norm):
    base, inputs = pre_norm
    silent = {name: LayerInputs(i.moments, i.mean, np.zeros_like(i.peak)) for name, i in inputs.items()}
    assert smooth(base.model, silent).n_changes == 0
