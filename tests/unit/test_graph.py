import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import ModelSource, load_source
from trimtab.compressors.testing import random_inputs, small_cnn, small_transformer
from trimtab.core.errors import DataError, ModelError
from trimtab.spaces.layer import Group
from trimtab.spaces.rules import tie_layers

_MODELS = {"cnn": small_cnn, "transformer": small_transformer}


def _layers(base):
    return {layer.name: layer for layer in base.layers}


def _export(module, *inputs):
    source = load_source((module.eval(), inputs))
    return source, build_base_graph(source, source.sample)


# -- the two small models -------------------------------------------------------------------------


def test_layers_carry_the_names_of_the_torch_modules(bases):
    assert {name: layer.kind for name, layer in _layers(bases["cnn"]).items()} == {
        "stem.0": "conv", "left.0": "conv", "right.0": "conv", "depthwise.0": "depthwise_conv", "point": "conv",
        "fc": "linear",
    }  # fmt: skip
    # the position table is a constant of the graph: it is looked up at fixed places
    linear = ("query", "key", "value", "out", "up", "down", "twice", "head")
    assert {name: layer.kind for name, layer in _layers(bases["transformer"]).items()} == {
        "tokens": "embedding", **dict.fromkeys(linear, "linear"),
    }  # fmt: skip


def test_weights_are_those_of_the_torch_modules_with_batch_norms_merged(bases):
    cnn, transformer = small_cnn(), small_transformer()
    stored = {
        name.removesuffix(".weight"): value.const_value.numpy()
        for base in bases.values()
        for name, value in base.model.graph.initializers.items()
    }
    for name in ("query", "up", "head"):
        np.testing.assert_array_equal(stored[name], getattr(transformer, name).weight.detach().numpy().T)
    for name in ("stem", "left", "right", "depthwise"):
        conv, norm, _ = getattr(cnn, name)
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
        expected = conv.weight.detach().numpy() * factor.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(stored[f"{name}.0"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", _MODELS)
def test_the_base_graph_computes_what_the_torch_module_computes(name, bases):
    inputs = random_inputs(name, 8, seed=2)
    session = onnxruntime.InferenceSession(ir.to_proto(bases[name].model).SerializeToString())
    with torch.no_grad():
        expected = _MODELS[name]()(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    np.testing.assert_allclose(session.run(None, inputs)[0], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "n_other"), [("cnn", 0), ("transformer", 2 * 4 * 12 * 12 * 8)])
def test_macs_are_half_of_what_torch_counts_as_flops(name, n_other, bases):
    """Besides the layers torch counts query × key and scores × value: two products of 4 heads of 12 × 12 × 8."""
    inputs = {key: torch.from_numpy(array) for key, array in random_inputs(name, 1).items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _MODELS[name]()(**inputs)
    assert sum(layer.macs for layer in bases[name].layers) + n_other == counter.get_total_flops() // 2


def test_macs_and_parameters_of_single_layers_are_right(bases):
    cnn, transformer = _layers(bases["cnn"]), _layers(bases["transformer"])
    # 16 × 16 places × 8 outputs × (3 inputs × 3 × 3); 8 biases come from the batch norm
    assert (cnn["stem.0"].macs, cnn["stem.0"].n_parameters) == (16 * 16 * 8 * 27, 8 * 27 + 8)
    assert (cnn["depthwise.0"].macs, cnn["depthwise.0"].n_parameters) == (16 * 16 * 8 * 9, 8 * 9 + 8)
    assert (cnn["fc"].macs, cnn["fc"].n_parameters) == (16 * 5, 16 * 5 + 5)
    # used twice on 12 places, stored once, no bias
    assert (transformer["twice"].macs, transformer["twice"].n_parameters) == (2 * 12 * 32 * 32, 32 * 32)
    assert (transformer["tokens"].macs, transformer["tokens"].n_parameters) == (0, 50 * 32)
    assert cnn["stem.0"].output_shape == (-1, 8, 16, 16)
    assert transformer["up"].output_shape == (-1, 12, 64)


# -- names and shared weights ---------------------------------------------------------------------


class Tied(nn.Module):
    """A language model's head: the embedding's own weight, transposed by the product."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.tokens(ids))


def test_an_embedding_tied_to_the_head_makes_two_layers_of_one_group():
    _, base = _export(Tied(), torch.zeros(1, 5, dtype=torch.long))
    assert {name: layer.kind for name, layer in _layers(base).items()} == {"tokens": "embedding", "tokens#2": "linear"}
    assert tie_layers(base.layers) == (Group("tokens", ("tokens", "tokens#2")),)


def test_a_model_of_several_inputs_keeps_their_names_and_runs_at_any_batch(bases):
    session = onnxruntime.InferenceSession(ir.to_proto(bases["transformer"].model).SerializeToString())
    assert [value.name for value in session.get_inputs()] == ["ids", "mask"]
    for n in (1, 5):
        assert session.run(None, random_inputs("transformer", n))[0].shape == (n, 3)


# -- hand-made files ------------------------------------------------------------------------------


def _source(nodes, constants, *, inputs=(("x", ["batch", 4]),), output=("y", None)):
    """A model without torch: constant name → array."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ModelSource(model.SerializeToString())


_X = {"x": np.ones((1, 4), np.float32)}


def _weight(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_weights_in_constant_nodes_are_layers_too():
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(_weight(4, 3), "w"))
    source = _source([constant, helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {})
    (layer,) = build_base_graph(source, _X).layers
    assert (layer.kind, layer.weight_shape, layer.macs) == ("linear", (4, 3), 12)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_gemm_becomes_one_linear_layer_that_computes_the_same(transposed, has_bias):
    weight, bias = _weight(4, 3), _weight(3)
    stored = weight.T if transposed else weight
    constants = {"fc.weight": stored, **({"fc.bias": bias} if has_bias else {})}
    source = _source([helper.make_node("Gemm", ["x", *constants], ["y"], "fc", transB=transposed)], constants)
    base = build_base_graph(source, _X)
    (layer,) = base.layers
    assert (layer.name, layer.kind, layer.weight_shape) == ("fc", "linear", (4, 3))
    assert layer.n_parameters == 12 + 3 * has_bias
    x = _weight(5, 4)
    got = onnxruntime.InferenceSession(ir.to_proto(base.model).SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, x @ weight + bias * has_bias, rtol=1e-5, atol=1e-6)


def test_a_gemm_that_scales_is_left_alone():
    source = _source([helper.make_node("Gemm", ["x", "w"], ["y"], "fc", alpha=0.5)], {"w": _weight(4, 3)})
    assert build_base_graph(source, _X).layers == ()


def test_names_that_an_exporter_made_up_give_way_to_the_node_s():
    nodes = [helper.make_node("MatMul", ["x", "onnx::MatMul_12"], ["y"], "/encoder/layer.0/query/MatMul")]
    (layer,) = build_base_graph(_source(nodes, {"onnx::MatMul_12": _weight(4, 3)}), _X).layers
    assert layer.name == "encoder.layer.0.query"


def test_layers_whose_made_up_names_clash_are_told_apart_and_not_tied():
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["h"], "/block/MatMul"),
        helper.make_node("MatMul", ["h", "onnx::MatMul_2"], ["y"], "/block/MatMul_1"),
    ]
    constants = {"onnx::MatMul_1": _weight(4, 4), "onnx::MatMul_2": _weight(4, 3)}
    layers = build_base_graph(_source(nodes, constants), _X).layers
    assert len(tie_layers(layers)) == 2


def test_a_layer_may_bear_the_name_of_another_constant():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "a"), helper.make_node("Add", ["h", "w.weight"], ["y"], "b")]
    (layer,) = build_base_graph(_source(nodes, {"w": _weight(4, 3), "w.weight": _weight(3)}), _X).layers
    assert layer.weight_shape == (4, 3)


def test_equal_weights_of_two_parameters_are_two_layers():
    """Cloned encoder layers before training, for example."""
    nodes = [helper.make_node("MatMul", ["x", "v1"], ["h"]), helper.make_node("MatMul", ["h", "v2"], ["y"])]
    source = _source(nodes, {"v1": _weight(4, 4), "v2": _weight(4, 4)})
    named = ModelSource(source.onnx_bytes, {"a.weight": _weight(4, 4).T, "b.weight": _weight(4, 4).T})
    assert [group.name for group in tie_layers(build_base_graph(named, _X).layers)] == ["a", "b"]


@pytest.mark.parametrize("is_looked_up", [False, True])
def test_a_weight_that_two_gemms_turn_is_stored_once_more_at_most(is_looked_up):
    """A hand-made file has no torch parameters to compare with: the names alone tie the two forms of the weight."""
    nodes = [
        helper.make_node("Gemm", ["x", "fc.weight"], ["h"], "one", transB=1),
        helper.make_node("Gemm", ["h", "fc.weight"], ["i"], "two", transB=1),
        helper.make_node("Gather", ["fc.weight", "row"], ["g"]),
        helper.make_node("Add", ["i", "g"], ["y"]),
    ]
    nodes = nodes if is_looked_up else [*nodes[:2], helper.make_node("Add", ["i", "row"], ["y"])]
    source = _source(nodes, {"fc.weight": _weight(4, 4)}, inputs=(("x", ["batch", 4]), ("row", ["batch", 4])))
    model = onnx.load_model_from_string(source.onnx_bytes)
    sample = {**_X, "row": np.ones((1, 4), np.float32)}
    if is_looked_up:
        model.graph.input[1].CopyFrom(helper.make_tensor_value_info("row", TensorProto.INT64, ["batch"]))
        sample["row"] = np.ones(1, np.int64)
    layers = build_base_graph(ModelSource(model.SerializeToString()), sample).layers
    assert {layer.name for layer in layers} == ({"fc", "fc#2"} if is_looked_up else {"fc"})
    assert len(tie_layers(layers)) == 1


def test_layers_that_swap_names_are_named_by_their_values():
    first, second = _weight(4, 4), _weight(4, 4) + 1
    nodes = [helper.make_node("MatMul", ["x", "b.weight"], ["h"]), helper.make_node("MatMul", ["h", "a.weight"], ["y"])]
    source = _source(nodes, {"b.weight": first, "a.weight": second})
    named = ModelSource(source.onnx_bytes, {"a.weight": first, "b.weight": second})
    assert [layer.name for layer in build_base_graph(named, _X).layers] == ["a", "b"]


def test_products_of_two_inputs_are_no_layers():
    source = _source([helper.make_node("MatMul", ["x", "z"], ["y"])], {}, inputs=(("x", [None, 4]), ("z", [4, 2])))
    assert build_base_graph(source, {**_X, "z": np.ones((4, 2), np.float32)}).layers == ()


def test_a_grouped_convolution_is_depthwise_only_with_one_input_each():
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["h"], group=2),
        helper.make_node("Conv", ["h", "b.weight"], ["y"], group=4),
    ]
    constants = {"a.weight": _weight(4, 2, 3, 3), "b.weight": _weight(8, 1, 3, 3)}
    source = _source(nodes, constants, inputs=(("x", ["batch", 4, 9, 9]),))
    base = build_base_graph(source, {"x": np.ones((1, 4, 9, 9), np.float32)})
    # 7 × 7 places × 4 outputs × (2 × 3 × 3), then 5 × 5 × 8 × 9
    assert [(layer.kind, layer.macs) for layer in base.layers] == [
        ("conv", 49 * 4 * 18), ("depthwise_conv", 25 * 8 * 9)
    ]  # fmt: skip


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"z": np.ones((1, 4), np.float32)}, "the model takes the inputs x; the data have z"),
        ({}, "the model takes the inputs x; the data have "),
        ({**_X, "z": _X["x"]}, "the model takes the inputs x; the data have x, z"),
        ({"x": np.ones((1, 4), np.float64)}, "input x: the model takes float32, the data have float64"),
        ({"x": np.ones((1, 5), np.float32)}, r"input x: the model takes shape .*4.*, the data have \[1, 5\]"),
        ({"x": np.ones((1, 4, 1), np.float32)}, r"input x: .* the data have \[1, 4, 1\]"),
    ],
)
def test_data_that_do_not_fit_name_the_input(sample, message):
    source = _source([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weight(4, 3)})
    with pytest.raises(DataError, match=message):
        build_base_graph(source, sample)


def test_a_batch_that_the_model_fixes_is_an_error_in_the_data():
    source = _source([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weight(4, 3)}, inputs=(("x", [2, 4]),))
    with pytest.raises(DataError, match=r"input x: the model takes batches of 2 only; export it with an open batch"):
        build_base_graph(source, _X)


def test_values_that_the_model_cannot_take_are_an_error_in_the_data(sources):
    ids = random_inputs("transformer", 3)
    ids["ids"][2, 0] = 999  # beyond the 50 rows of the table
    with pytest.raises(DataError, match="the model cannot run on calibration sample 2"):
        prepare_model(sources["transformer"], ids)


def test_a_model_that_the_runtime_refuses_is_an_error_in_the_model():
    source = _source([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weight(5, 3)})
    with pytest.raises(ModelError, match="ONNX Runtime refuses the model"):
        build_base_graph(source, _X)
