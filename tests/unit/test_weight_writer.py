"""Treated weights and activations as a graph reads them, against numpy, on both runtimes."""

import itertools

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.graph import input_of, weight_of
from trimtab.compressors.layer_inputs import LayerInputs, collect_layer_inputs
from trimtab.compressors.quantization.calibration import Range, collect_histograms
from trimtab.compressors.quantization.quantize import QuantizationPlan, quantize_graph, rounded_weights
from trimtab.compressors.testing import random_inputs
from trimtab.compressors.weights.layer_weight import LayerWeight
from trimtab.compressors.weights.weight_bank import WeightBank
from trimtab.compressors.weights.weight_treatment import treat_weight
from trimtab.core.errors import PolicyError
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment


def _plan(treatments, scheme, **more):
    return QuantizationPlan(treatments, (), more.pop("ranges", {}), scheme, WeightBank(), **more)


def _run(model, inputs, names=None):
    """Runs a model as it is written: fusions may round otherwise, and break float8."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(names, inputs)


# -- what a node reads ----------------------------------------------------------------------------

_BEFORE = {
    "nothing": {},
    "codes": {"clusters": 16},
    "codes of groups": {"clusters": 3, "cluster_scope": "group", "cluster_weighting": "sensitivity"},
    "signs": {"binary": "binary"},
    "three values": {"binary": "ternary"},
    "zeros": {"sparsity": 0.6, "saliency": "wanda"},
    "a pattern": {"pattern": "2:4"},
    "codes and zeros": {"clusters": 8, "sparsity": 0.8},
}
_AFTER = {
    "float32": {},
    "float16": {"weight_dtype": "float16"},
    "int8": {"weight_dtype": "int8"},
    "int8 per tensor": {"weight_dtype": "int8", "granularity": "tensor"},
    "float8": {"weight_dtype": "float8"},
}


def _in_turn(layers, after, *, start):
    """Gives each layer a treatment: what comes before quantisation takes turns."""
    befores = itertools.islice(itertools.cycle(_BEFORE.values()), start, None)
    if "float8" in after.values():
        befores = itertools.cycle([_BEFORE["nothing"], _BEFORE["zeros"], _BEFORE["a pattern"]])
    return {layer: Treatment(**before, **after) for layer, before in zip(layers, befores, strict=False)}


@pytest.fixture(scope="module")
def inputs_of(bases):
    """Model name → layer → what enters it."""
    return {
        name: collect_layer_inputs(
            base.model,
            [layer.name for layer in base.layers if layer.kind != "embedding"],
            [random_inputs(name, 4)],
        )
        for name, base in bases.items()
    }


@pytest.mark.parametrize("after", _AFTER.values(), ids=_AFTER)
@pytest.mark.parametrize(("name", "start"), [("cnn", 1), ("cnn", 5), ("transformer", 1)])
def test_a_node_reads_what_its_stored_weight_is_said_to_stand_for(name, start, after, bases, schemes, inputs_of):
    base, rng = bases[name], np.random.default_rng(0)
    treated = _in_turn([layer.name for layer in base.layers if layer.kind != "embedding"], after, start=start)
    scales = {x.name: rng.normal(size=x.weight_shape[0]) for x in base.layers if x.kind.endswith("conv")}
    plan = _plan(treated, schemes["onnxruntime"], inputs=inputs_of[name], output_scales=scales)
    model = base.model.clone()
    layer_of = {node.outputs[0].name: str(w.name) for node in model.graph if (w := weight_of(node)) is not None}
    expected = rounded_weights(model.graph, plan)
    quantize_graph(model.graph, plan)
    reads = {
        str(input_of(node, 1).name): layer_of[node.outputs[0].name].removesuffix(".weight")
        for node in model.graph
        if node.outputs[0].name in layer_of and node.op_type in ("Conv", "MatMul")
    }
    reads = {value: layer for value, layer in reads.items() if value != f"{layer}.weight"}
    assert set(reads.values()) == {layer for layer, treatment in treated.items() if treatment != Treatment()}
    proto = ir.to_proto(model)
    proto.graph.output.extend([onnx.ValueInfoProto(name=value) for value in reads])
    found = _run(proto.SerializeToString(), random_inputs(name, 1), list(reads))
    for (value, layer), got in zip(reads.items(), found, strict=True):
        np.testing.assert_array_equal(got, expected[layer], err_msg=value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_treated_model_computes_as_a_float_model_with_treated_weights(name, runtime, bases, pipeline):
    builder, base = pipeline(name, runtime), bases[name]
    kinds = {layer.name: layer.kind for layer in base.layers if layer.kind != "embedding"}
    treated = _in_turn(kinds, {}, start=1)
    reference = ir.to_proto(base.model)
    for tensor in reference.graph.initializer:
        layer = tensor.name.removesuffix(".weight")
        if layer in treated:
            weight = treat_weight(
                numpy_helper.to_array(tensor),
                treated[layer],
                axis=1 if kinds[layer] == "linear" else 0,
                inputs=builder.stage.inputs()[layer],
                output_scale=builder.prepared.output_scales.get(layer),
            )
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight.array), tensor.name))
    inputs = random_inputs(name, 4, seed=5)
    want = _run(reference.SerializeToString(), inputs)[0]
    got = build_device(Target(runtime, batch_size=4)).load(builder.build(treated, GraphTreatment())).run(inputs)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after", [{}, {"weight_dtype": "float16"}, {"weight_dtype": "int8"}], ids=str)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_clustered_table_is_looked_up(runtime, after, pipeline, bases):
    """Table values of 16 kinds; int8 rounds them to 1/127 of the largest."""
    treatment = Treatment(clusters=16, **after)
    artifact = pipeline("transformer", runtime).build({"tokens": treatment}, GraphTreatment())
    reference = ir.to_proto(bases["transformer"].model)
    for tensor in reference.graph.initializer:
        if tensor.name == "tokens.weight":
            clustered = treat_weight(numpy_helper.to_array(tensor), treatment, axis=0).array
            if "int8" in after.values():
                step = np.float32(np.abs(clustered).max() / 127)
                clustered = np.rint(clustered / step) * step
            elif after:
                clustered = clustered.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(clustered.astype(np.float32), tensor.name))
    inputs = random_inputs("transformer", 4, seed=5)
    got = build_device(Target(runtime, batch_size=4)).load(artifact).run(inputs)[0]
    np.testing.assert_allclose(got, _run(reference.SerializeToString(), inputs)[0], rtol=1e-4, atol=1e-5)


# -- one layer: what the plan says beside the treatment --------------------------------------------


def _one_layer(weight):
    """Returns the model y = x · weight, or y = conv(x, weight), of a layer called ``a``."""
    op, n_axes = ("Conv", weight.ndim) if weight.ndim > 2 else ("MatMul", 2)
    sides = ["batch", weight.shape[1] if op == "Conv" else weight.shape[0], *["side"] * (n_axes - 2)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "a.weight"], ["y"], "a")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "a.weight")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def _write(model, treatment, scheme, **more):
    """Returns the model with its layer treated, serialised."""
    copy = model.clone()
    quantize_graph(copy.graph, _plan({"a": treatment}, scheme, **more))
    return ir.to_proto(copy).SerializeToString()


def _constant(model, name):
    graph = onnx.load_model_from_string(model).graph
    return next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == name)


@pytest.fixture
def weight():
    return np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("levels", [None, (-0.25, 1.25)], ids=["calibrated", "learned"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_binary_activations_are_two_values_around_their_middle(runtime, levels, weight, schemes):
    model, rng = _one_layer(weight), np.random.default_rng(1)
    x = np.maximum(rng.normal(size=(8, 4, 9, 9)), -0.5).astype(np.float32)
    x[:, 0, 0] = 0.5  # the middle itself is high
    statistics = collect_histograms(model, ["x"], [{"x": x}])
    treatment = Treatment(binary="binary", activation_dtype="binary")
    learned = {} if levels is None else {"a": levels}
    written = _write(model, treatment, schemes[runtime], statistics=statistics, learned_levels=learned)
    got = build_device(Target(runtime, batch_size=8)).load(Artifact(written)).run({"x": x})[0]
    distance = np.abs(x - x.mean()).mean()
    low, high = levels or (x.mean() - distance, x.mean() + distance)
    signs = np.where(x < (low + high) / 2, low, high)
    binary = np.where(weight < 0, -1.0, 1.0) * np.abs(weight).mean((1, 2, 3), keepdims=True)
    patches = np.lib.stride_tricks.sliding_window_view(signs, (3, 3), axis=(2, 3))
    want = np.einsum("nchwij,ocij->nohw", patches, binary)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())  # a mean to half a bin in 2048


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (24, 10)])
def test_float8_rounds_weights_and_inputs_to_a_scale_of_448(shape, schemes):
    rng = np.random.default_rng(2)
    weight = rng.normal(size=shape).astype(np.float32)
    model = _one_layer(weight)
    x = rng.normal(size=(5, shape[1], 7, 7) if len(shape) > 2 else (5, shape[0])).astype(np.float32)
    bound = float(np.abs(x).max())
    written = _write(model, QUANTIZE_OPTIONS["float8"], schemes["onnxruntime"], ranges={"x": Range(-bound, bound / 2)})
    assert {entry.domain: entry.version for entry in onnx.load_model_from_string(written).opset_import}[""] == 19

    def rounded(array, scale):
        return (array / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    axes = tuple(range(1, len(shape))) if len(shape) > 2 else (0,)
    scale = np.abs(weight).max(axes, keepdims=True) / np.float32(448)
    reference = ir.to_proto(_one_layer(rounded(weight, scale))).SerializeToString()
    want = _run(reference, {"x": rounded(x, np.float32(bound / 448))})[0]
    np.testing.assert_allclose(_run(written, {"x": x})[0], want, rtol=1e-4, atol=1e-4)


def test_float8_takes_a_model_to_the_operators_that_know_it(pipeline):
    """The transformer has a ReduceMean, whose axes become an input on the way; its other numbers stay."""
    builder = pipeline("transformer")
    before = builder.build({}, GraphTreatment()).model
    assert "ReduceMean" in {node.op_type for node in onnx.load_model_from_string(before).graph.node}
    written = builder.build({"head": QUANTIZE_OPTIONS["float8"]}, GraphTreatment()).model
    inputs = random_inputs("transformer", 4)
    want = _run(before, inputs)[0]
    np.testing.assert_allclose(_run(written, inputs)[0], want, atol=0.1 * np.abs(want).max())  # 3 bits of mantissa


def test_learned_steps_become_scales_behind_their_batch_norm(weight, schemes):
    step, scale = np.linspace(0.01, 0.02, 6), np.array([2.0, -3.0, 1.0, 0.5, -1.0, 4.0])
    written = _write(
        _one_layer(weight), Treatment(weight_dtype="int8"), schemes["onnxruntime"],
        learned_steps={"a": step}, output_scales={"a": scale},
    )  # fmt: skip
    found = _constant(written, "a.weight_int8_scale")
    np.testing.assert_allclose(found, step * np.abs(scale), rtol=1e-6)
    codes = np.clip(np.rint(weight / found.reshape(-1, 1, 1, 1)), -127, 127)
    np.testing.assert_array_equal(_constant(written, "a.weight_int8"), codes)


def test_one_learned_step_for_a_tensor_is_one_scale(weight, schemes):
    treatment = Treatment(weight_dtype="int8", granularity="tensor")
    for steps, expected in (
        (np.full(6, 0.03), np.float32(0.03)),
        (np.linspace(0.01, 0.02, 6), np.abs(weight).max() / 127),
    ):
        written = _write(_one_layer(weight), treatment, schemes["onnxruntime"], learned_steps={"a": steps})
        assert _constant(written, "a.weight_int8_scale") == pytest.approx(expected)


@pytest.mark.parametrize("scale", [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0, -0.5, 2.0, -3.0, 0.0, 0.7]])
def test_codes_of_a_codebook_stay_as_few_as_its_values_and_scales_stay_positive(scale, weight, schemes):
    rng = np.random.default_rng(3)
    codebook = np.sort(rng.normal(size=16)).astype(np.float32)
    merged = rng.choice(codebook, size=weight.shape) * np.float32(scale).reshape(-1, 1, 1, 1)
    written = _write(
        _one_layer(merged.astype(np.float32)), Treatment(clusters=16, weight_dtype="int8"), schemes["onnxruntime"],
        output_scales={"a": np.array(scale)},
    )  # fmt: skip
    codes, scales = _constant(written, "a.weight_int8"), _constant(written, "a.weight_int8_scale")
    assert (scales > 0).all()
    upright = codes * np.where(np.array(scale) < 0, -1, 1).reshape(-1, 1, 1, 1)
    assert len(np.unique(upright[np.array(scale) != 0])) <= 16
    step = np.abs(codebook).max() / 127
    error = np.abs(codes * scales.reshape(-1, 1, 1, 1) - merged)
    assert (error <= step * np.abs(scale).reshape(-1, 1, 1, 1) * (0.5 + 1e-4) + 1e-25).all()


@pytest.mark.parametrize("treatment", [
    Treatment(weight_dtype="int8"),
    Treatment(weight_dtype="int8", granularity="tensor"),
    Treatment(weight_dtype="int4", granularity="block16"),
    Treatment(weight_dtype="int4", granularity="block16", sparsity=0.5),
], ids=lambda treatment: treatment.label)  # fmt: skip
def test_compensated_rounding_errs_less_where_the_inputs_are_and_keeps_zeros(treatment, schemes):
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(40, 12)).astype(np.float32)
    x = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 40)) + 0.05 * rng.normal(size=(500, 40))  # correlated
    inputs = {"a": LayerInputs((x.T @ x / 500)[None], x.mean(0)[None], np.abs(x).max(0)[None])}
    model, errors = _one_layer(weight), {}
    treated = treat_weight(weight, treatment, axis=1).array
    for rounding in ("nearest", "compensated"):
        plan = _plan({"a": treatment}, schemes["onnxruntime"], inputs=inputs, rounding=rounding)
        rounded = rounded_weights(model.graph, plan)["a"]
        errors[rounding] = float(((x @ (rounded - treated)) ** 2).sum())
        np.testing.assert_array_equal(rounded[treated == 0], 0)
    assert errors["compensated"] < 0.7 * errors["nearest"]


def test_compensated_rounding_of_a_grouped_convolution_goes_by_each_group(schemes):
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)  # two groups of two outputs
    x = rng.normal(size=(2, 300, 3)) @ rng.normal(size=(2, 3, 12))
    inputs = {"a": LayerInputs(np.einsum("gsi,gsj->gij", x, x) / 300, x.mean(1), np.abs(x).max(1))}
    model, errors = _one_layer(weight), {}
    for rounding in ("nearest", "compensated"):
        plan = _plan({"a": Treatment(weight_dtype="int8")}, schemes["onnxruntime"], inputs=inputs, rounding=rounding)
        change = (rounded_weights(model.graph, plan)["a"] - weight).reshape(2, 2, 12)
        errors[rounding] = float((np.einsum("gsk,gok->gso", x, change) ** 2).sum())
    assert errors["compensated"] < 0.7 * errors["nearest"]


@pytest.mark.parametrize(("treatment", "rounding"), [
    (Treatment(sparsity=0.5, saliency="wanda"), "nearest"),
    (Treatment(clusters=4, cluster_weighting="sensitivity"), "nearest"),
    (Treatment(weight_dtype="int8"), "compensated"),
])  # fmt: skip
def test_a_layer_without_statistics_is_named(treatment, rounding, weight, schemes):
    with pytest.raises(PolicyError, match="layer a: there are no statistics of what enters it"):
        _write(_one_layer(weight), treatment, schemes["onnxruntime"], rounding=rounding)


@pytest.mark.parametrize(
    "treatment", [Treatment(binary="binary", activation_dtype="binary"), QUANTIZE_OPTIONS["float8"]]
)
def test_an_activation_without_statistics_is_named(treatment, weight, schemes):
    with pytest.raises(PolicyError, match="there are no calibration statistics for the value 'x'"):
        _write(_one_layer(weight), treatment, schemes["onnxruntime"])


@pytest.mark.parametrize("dtype", ["binary", "float8"])
def test_a_table_has_no_activations(dtype, pipeline):
    treatment = QUANTIZE_OPTIONS["float8"] if dtype == "float8" else Treatment(binary="binary", activation_dtype=dtype)
    with pytest.raises(PolicyError, match=f"layer tokens: {dtype} activations exist for convolutions and linear"):
        pipeline("transformer").build({"tokens": treatment}, GraphTreatment())


def test_full_precision_changes_nothing_in_the_graph(pipeline, bases):
    pinned = {layer.name: QUANTIZE_OPTIONS["float32"] for layer in bases["cnn"].layers}
    builder = pipeline("cnn")
    assert builder.build(pinned, GraphTreatment()).model == builder.build({}, GraphTreatment()).model


def test_a_bank_forgets_what_was_used_least_recently(weight, schemes):
    made = []

    class Counting(WeightBank):
        def _as_codes(self, layer, axis):
            made.append(layer.name)
            return super()._as_codes(layer, axis)

    bank = Counting(max_bytes=2 * weight.size + 100)
    layer = lambda name: LayerWeight(name, weight, 0, Treatment(weight_dtype="int8"))  # noqa: E731 - one expression
    for name in ("a", "a", "b", "a", "c", "a", "b"):
        bank.channels(layer(name))
    assert made == ["a", "b", "c", "b"]
