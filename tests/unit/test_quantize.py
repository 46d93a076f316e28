import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import ModelSource
from trimtab.compressors.testing import random_inputs
from trimtab.core.errors import PolicyError
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import OPTION_KINDS, Target
from trimtab.spaces.policy import EXTRA_OPS, GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment

INT8 = QUANTIZE_OPTIONS["int8"]


def _run(model, inputs, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
    """Plain ONNX Runtime, with float32 activations beside compressed weights (its default rounds them to 8 bits)."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def _constants(content):
    model = onnx.load_model_from_string(content)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _treat(layers, treatment, kinds):
    return {layer.name: treatment for layer in layers if layer.kind in kinds}


# -- against onnxruntime.quantization -------------------------------------------------------------


class _Reader:
    """What quantize_static reads its calibration samples from."""

    def __init__(self, inputs):
        n = len(next(iter(inputs.values())))
        self._feeds = iter([{name: array[i : i + 1] for name, array in inputs.items()} for i in range(n)])

    def get_next(self):
        return next(self._feeds, None)


def _quantize_with_onnxruntime(base, folder, inputs, op_types, excluded):
    onnx.save(ir.to_proto(base.model), folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        _Reader(inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=op_types,
        nodes_to_exclude=excluded,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    return onnx.load(folder / "int8.onnx")


def _with_float_biases(content, base):
    """Undoes the one thing that ours does differently: biases of linear layers are int32, so that they run as Gemm."""
    model = onnx.load_model_from_string(content)
    unpacked = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        for position, name in enumerate(node.input if node.op_type == "Add" else ()):
            codes = unpacked.get(name, "")
            if codes.endswith(f"_{node.name}_int32"):
                bias = base.graph.initializers[codes.removesuffix(f"_{node.name}_int32")].const_value.numpy()
                model.graph.initializer.append(numpy_helper.from_array(bias, f"{codes}_undone"))
                node.input[position] = f"{codes}_undone"
    return model


# Relu stands in the list so that onnxruntime moves a convolution's output scale behind it, where ours is.
# Excluded are what ours never quantises: additions of biases, products of two activations, and what touches no layer.
# The transformer is compared with quantised additions only: without them, onnxruntime lets a residual addition read
# the rounded input of the layer beside it, and ours lets it read the exact one.
_SAME_PLACES = {
    "cnn": ("cnn", (), ["Conv", "MatMul", "Relu"], []),
    "cnn with add and pool": (
        "cnn", ("add", "pool"), ["Conv", "MatMul", "Relu", "Add", "GlobalAveragePool"], ["/fc/Gemm/Add"],
    ),
    "transformer with add": (
        "transformer",
        ("add",),
        ["MatMul", "Add"],
        ["/MatMul", "/MatMul_1", "/Add", "/Add_1", "/Add_3", "/head/Gemm/Add",
         *(f"/{name}/Add" for name in ("query", "key", "value", "out", "up", "down"))],
    ),
}  # fmt: skip


@pytest.fixture
def long_names(monkeypatch):
    """Leaves the names by which a constant tells what it is for."""
    monkeypatch.setattr("trimtab.compressors.onnx_stage.shorten_names", lambda *_: None)


@pytest.mark.usefixtures("long_names")
@pytest.mark.parametrize(("name", "families", "op_types", "excluded"), _SAME_PLACES.values(), ids=_SAME_PLACES)
def test_static_int8_is_that_of_onnxruntime_output_for_output(
    name, families, op_types, excluded, bases, pipeline, tmp_path
):
    theirs = _quantize_with_onnxruntime(bases[name], tmp_path, random_inputs(name, 8), op_types, excluded)
    treatments = _treat(bases[name].layers, INT8, OPTION_KINDS["int8"])
    artifact = pipeline(name).build(treatments, GraphTreatment(quantized_ops=families))
    ours = _constants(artifact.model)
    scales = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in theirs.graph.initializer
        if tensor.name.endswith("_scale") and not tensor.dims
    }
    assert scales
    theirs_by_name = _constants(theirs.SerializeToString())
    for key, value in scales.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
        zero = key.replace("_scale", "_zero_point")
        assert ours[zero] == theirs_by_name[zero]
    n_pairs = [
        sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
        for model in (onnx.load_model_from_string(artifact.model), theirs)
    ]
    assert n_pairs[0] == n_pairs[1]
    inputs = random_inputs(name, 64, seed=9)
    ours_alike = _with_float_biases(artifact.model, bases[name].model)
    np.testing.assert_array_equal(_run(ours_alike, inputs), _run(theirs, inputs))


def test_dynamic_int8_is_that_of_onnxruntime_output_for_output(bases, pipeline, tmp_path):
    onnx.save(ir.to_proto(bases["transformer"].model), tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    treatments = _treat(bases["transformer"].layers, QUANTIZE_OPTIONS["int8_dynamic"], ["linear"])
    ours = pipeline("transformer").build(treatments, GraphTreatment()).model
    inputs = random_inputs("transformer", 64, seed=9)
    # without the fusions: they depend on the order of the nodes, and one SkipLayerNormalization more or less moves
    # sums by an ulp, which takes a few activations over the edge to the next code
    as_written = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    theirs = _run(onnx.load(tmp_path / "int8.onnx"), inputs, as_written)
    np.testing.assert_array_equal(_run(ours, inputs, as_written), theirs)


# -- against a float model whose weights were rounded by hand --------------------------------------


def _round_by_hand(weight, option, kind):
    """What the stored form stands for, in numpy."""
    if option == "float16":
        return weight.astype(np.float16).astype(np.float32)
    if option == "int8_weight":
        axes = tuple(range(1, weight.ndim)) if kind != "linear" else (0,)
        scale = np.abs(weight).max(axes, keepdims=True) / np.float32(127)
        return np.rint(weight / scale).astype(np.float32) * scale
    blocks = np.zeros((-(-len(weight) // 32) * 32, weight.shape[1]), np.float32)
    blocks[: len(weight)] = weight
    rounded = []
    for block in np.split(blocks, len(blocks) // 32):
        extreme = block[np.abs(block).argmax(0), range(block.shape[1])]
        rounded.append(np.clip(np.rint(block / (extreme / -8)), -8, 7) * (extreme / -8))
    return np.concatenate(rounded)[: len(weight)].astype(np.float32)


_STORED = [
    (name, option, kind)
    for option in ("float16", "int8_weight", "int4_weight")
    for name, kinds in (("cnn", ("conv", "depthwise_conv", "linear")), ("transformer", ("linear", "embedding")))
    for kind in kinds
    if kind in OPTION_KINDS[option]
]


@pytest.mark.parametrize(("name", "option", "kind"), _STORED)
def test_compressed_weights_compute_as_a_float_model_with_rounded_weights(name, option, kind, bases, pipeline):
    base = bases[name]
    treated = _treat(base.layers, QUANTIZE_OPTIONS[option], [kind])
    reference = ir.to_proto(base.model)
    for tensor in reference.graph.initializer:
        if tensor.name.removesuffix(".weight") in treated:
            rounded = _round_by_hand(numpy_helper.to_array(tensor), option, kind)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    inputs = random_inputs(name, 16, seed=5)
    artifact = pipeline(name).build(treated, GraphTreatment())
    np.testing.assert_allclose(_run(artifact.model, inputs), _run(reference, inputs), rtol=1e-4, atol=1e-5)


# -- on both runtimes -----------------------------------------------------------------------------

#: how far the outputs may lie from float32, relative to the largest: 8 bits keep about 1/127 per value, 4 bits 1/8
_CLOSE = {
    "none": 1e-5,
    "float32": 0,
    "float16": 2e-3,
    "int8": 0.06,
    "int8_dynamic": 0.06,
    "int8_weight": 0.04,
    "int4_weight": 0.25,
}

#: float8 is tested by itself: ONNX Runtime has it for one layer at a time only
_OPTIONS = tuple(option for option in QUANTIZE_OPTIONS if option != "float8")

_LAYER_KINDS = {"cnn": ("conv", "depthwise_conv", "linear"), "transformer": ("linear", "embedding")}


@pytest.fixture(scope="module")
def devices():
    return {runtime: build_device(Target(runtime, batch_size=4)) for runtime in ("onnxruntime", "openvino")}


def _compare_with_float(devices, runtime, pipeline, name, treatments, graph=None):
    """Returns the largest difference to the float model on the same runtime, relative to the largest output."""
    inputs = random_inputs(name, 4, seed=3)
    builder = pipeline(name, runtime)
    artifact = builder.build(treatments, graph or GraphTreatment())
    got = devices[runtime].load(artifact).run(inputs)[0]
    want = devices[runtime].load(builder.build({}, GraphTreatment())).run(inputs)[0]
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("name", "option", "kind"),
    [(n, o, k) for n, kinds in _LAYER_KINDS.items() for o in _OPTIONS for k in kinds if k in OPTION_KINDS[o]],
)
def test_every_option_on_every_kind_stays_close_to_float(name, option, kind, runtime, devices, bases, pipeline):
    treatments = _treat(bases[name].layers, QUANTIZE_OPTIONS[option], [kind])
    assert treatments
    assert _compare_with_float(devices, runtime, pipeline, name, treatments) <= _CLOSE[option]


_FAMILIES = [*((family,) for family in EXTRA_OPS), ("add", "pool"), EXTRA_OPS]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("families", _FAMILIES, ids="+".join)
@pytest.mark.parametrize("name", _LAYER_KINDS)
def test_quantised_ops_stay_close_to_float(name, families, runtime, devices, bases, pipeline):
    treatments = _treat(bases[name].layers, INT8, OPTION_KINDS["int8"])
    graph = GraphTreatment(quantized_ops=families)
    assert _compare_with_float(devices, runtime, pipeline, name, treatments, graph) <= 0.12


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("activation_range", ["static", "dynamic"])
def test_linear_layers_are_quantised_per_tensor_and_per_channel(
    granularity, activation_range, runtime, devices, bases, pipeline
):
    treatment = Treatment(
        weight_dtype="int8", activation_dtype="int8", activation_range=activation_range, granularity=granularity
    )
    treatments = _treat(bases["transformer"].layers, treatment, ["linear"])
    assert _compare_with_float(devices, runtime, pipeline, "transformer", treatments) <= 0.06
    constants = _constants(pipeline("transformer", runtime).build(treatments, GraphTreatment()).model)
    scale = constants["up.weight_int8_scale"]
    assert scale.shape == (() if granularity == "tensor" else (64,))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_embeddings_are_stored_with_one_scale_or_one_per_row(granularity, devices, pipeline):
    treatments = {"tokens": Treatment(weight_dtype="int8", granularity=granularity)}
    for runtime in devices:
        assert _compare_with_float(devices, runtime, pipeline, "transformer", treatments) <= 0.04
    constants = _constants(pipeline("transformer").build(treatments, GraphTreatment()).model)
    assert constants["tokens.weight_scale"].shape == (() if granularity == "tensor" else (50, 1))


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("size", [16, 64])
def test_linear_layers_are_stored_in_blocks(bits, size, devices, bases, pipeline):
    treatments = _treat(
        bases["transformer"].layers, Treatment(weight_dtype=bits, granularity=f"block{size}"), ["linear"]
    )
    error = _compare_with_float(devices, "onnxruntime", pipeline, "transformer", treatments)
    assert error <= (0.02 if bits == "int8" else 0.25)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", _LAYER_KINDS)
def test_mixed_policies_stay_close_to_float(name, runtime, seed, devices, bases, pipeline):
    rng = np.random.default_rng(seed)
    able = {layer.name: [o for o in _OPTIONS if layer.kind in OPTION_KINDS[o]] for layer in bases[name].layers}
    treatments = {layer: QUANTIZE_OPTIONS[str(rng.choice(options))] for layer, options in able.items()}
    assert _compare_with_float(devices, runtime, pipeline, name, treatments) <= 0.3


# -- storage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["float16", "int8", "int8_dynamic", "int8_weight", "int4_weight"])
def test_a_weight_that_two_layers_share_is_stored_once(option, pipeline):
    constants = _constants(pipeline("transformer").build({"twice": QUANTIZE_OPTIONS[option]}, GraphTreatment()).model)
    large = [
        array for name, array in constants.items() if name.startswith("twice.weight") and array.size >= 32 * 32 / 2
    ]
    assert len(large) == 1


@pytest.mark.parametrize(
    ("option", "bytes_each"), [("float16", 2), ("int8", 1), ("int8_weight", 1), ("int4_weight", 0.5)]
)
def test_a_treated_weight_takes_the_bytes_that_its_type_promises(option, bytes_each, bases, pipeline):
    builder = pipeline("transformer")
    saved = len(builder.build({}, GraphTreatment()).model) - len(
        builder.build({"up": QUANTIZE_OPTIONS[option]}, GraphTreatment()).model
    )
    # 32 × 64 weights; nodes, names and scales cost up to 2 kB
    assert 0 <= 32 * 64 * (4 - bytes_each) - saved <= 2000


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_activations_of_compressed_weights_are_quantised_by_the_runtime_only_where_asked(runtime, pipeline):
    builder = pipeline("transformer", runtime)
    dynamic = builder.build({"up": QUANTIZE_OPTIONS["int8_dynamic"]}, GraphTreatment())
    weights = builder.build({"up": QUANTIZE_OPTIONS["int8_weight"]}, GraphTreatment(precision="bfloat16"))
    assert (dynamic.dynamic_activations, weights.dynamic_activations) == (runtime == "openvino", False)
    assert (dynamic.precision, weights.precision) == ("float32", "bfloat16")


# -- biases ---------------------------------------------------------------------------------------


def _one_conv(weight, bias):
    """y = conv(x) with a 1 × 1 kernel, (batch, 1, 2, 2) → (batch, n, 2, 2), then a second one that reads it."""
    n = len(bias)
    nodes = [helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["h"], "a"),
             helper.make_node("Conv", ["h", "b.weight"], ["y"], "b")]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "convs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", n, 2, 2])],
        [
            numpy_helper.from_array(np.asarray(weight, np.float32).reshape(n, 1, 1, 1), "a.weight"),
            numpy_helper.from_array(np.asarray(bias, np.float32), "a.bias"),
            numpy_helper.from_array(np.eye(n, dtype=np.float32).reshape(n, n, 1, 1), "b.weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ModelSource(model.SerializeToString())


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.usefixtures("long_names")
def test_a_bias_that_int32_cannot_hold_raises_the_scale_of_the_weight(granularity, sign, schemes):
    # input scale 1/255 · weight scale 1e-9/127: one step of the bias would be 3e-14, and 5 is 1.6e14 of them
    source = _one_conv([1e-9, 0.5, 1e-9], [sign * 5.0, 0.25, 0.0])
    x = np.random.default_rng(0).random((8, 1, 2, 2)).astype(np.float32)
    pipeline = Pipeline(prepare_model(source, {"x": x}), schemes["onnxruntime"])
    treatment = Treatment(weight_dtype="int8", activation_dtype="int8", granularity=granularity)
    quantized = pipeline.build({"a": treatment}, GraphTreatment()).model
    want = _run(source.onnx_bytes, {"x": x})
    # one step of the int8 output, whose range is about 5.75
    np.testing.assert_allclose(_run(quantized, {"x": x}), want, atol=0.6 * 5.75 / 255)
    codes = next(array for name, array in _constants(quantized).items() if name.endswith("_int32"))
    assert np.sign(codes[0]) == sign
    assert codes[2] == 0


def test_two_layers_that_share_a_weight_keep_a_bias_that_is_too_large_for_one_of_them(schemes):
    """The raised scale is that of one use: the other keeps the bank's codes."""
    nodes = [helper.make_node("Conv", ["x", "a.weight", "small"], ["h"], "first"),
             helper.make_node("Conv", ["x", "a.weight", "large"], ["i"], "second"),
             helper.make_node("Add", ["h", "i"], ["y"], "sum")]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [
            numpy_helper.from_array(np.full((1, 1, 1, 1), 1e-3, np.float32), "a.weight"),
            numpy_helper.from_array(np.zeros(1, np.float32), "small"),
            numpy_helper.from_array(np.full(1, 1e5, np.float32), "large"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(0).random((8, 1, 2, 2)).astype(np.float32)
    pipeline = Pipeline(prepare_model(ModelSource(model.SerializeToString()), {"x": x}), schemes["onnxruntime"])
    quantized = onnx.load_model_from_string(pipeline.build({"a": INT8}, GraphTreatment()).model)
    quantized.graph.output.extend([onnx.ValueInfoProto(name="h"), onnx.ValueInfoProto(name="i")])
    session = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
    _, small, large = session.run(["y", "h", "i"], {"x": x})
    np.testing.assert_allclose(small, x * 1e-3, atol=1e-3 / 100)
    np.testing.assert_allclose(large, np.full_like(x, 1e5), rtol=0.01)


# -- refusals and purity --------------------------------------------------------------------------


def test_a_layer_that_the_model_does_not_have_is_named(pipeline):
    with pytest.raises(PolicyError, match=r"the model has no layer fd, head\.9"):
        pipeline("cnn").build({"fd": INT8, "fc": INT8, "head.9": INT8}, GraphTreatment())


@pytest.mark.parametrize(
    ("name", "fusion", "reason"),
    [
        ("cnn", "gelu", "fusion 'gelu' is not available for this model: it gives the same graph as 'none'"),
        ("transformer", "attention", "fusion 'attention' is not available .* it gives the same graph as 'gelu'"),
    ],
)
def test_a_fusion_that_was_dropped_is_named_with_its_reason(name, fusion, reason, pipeline):
    with pytest.raises(PolicyError, match=reason):
        pipeline(name).build({}, GraphTreatment(fusion=fusion))


def test_a_fusion_that_was_not_prepared_is_named(sources, schemes):
    prepared = prepare_model(sources["transformer"], random_inputs("transformer", 1))
    with pytest.raises(PolicyError, match="fusion 'gelu' is not available for this model: it was not prepared"):
        Pipeline(prepared, schemes["onnxruntime"]).build({}, GraphTreatment(fusion="gelu"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("name", "layer", "option"),
    [
        ("cnn", "left.0", "int4_weight"),
        ("cnn", "left.0", "int8_dynamic"),
        ("cnn", "depthwise.0", "int4_weight"),
        ("cnn", "depthwise.0", "int8_dynamic"),
        ("transformer", "tokens", "int8"),
        ("transformer", "tokens", "int8_dynamic"),
        ("transformer", "tokens", "int4_weight"),
    ],
)
def test_a_treatment_that_a_kind_cannot_take_is_refused_by_name(name, layer, option, runtime, pipeline):
    with pytest.raises(PolicyError, match=f"layer {layer}: .* linear"):
        pipeline(name, runtime).build({layer: QUANTIZE_OPTIONS[option]}, GraphTreatment())


def test_layers_that_are_listed_as_untouched_stay_as_they_are(bases, pipeline):
    every = {layer.name: Treatment() for layer in bases["cnn"].layers}
    builder = pipeline("cnn")
    assert builder.build(every, GraphTreatment()) == builder.build({}, GraphTreatment())


@pytest.mark.parametrize("name", _LAYER_KINDS)
def test_building_is_pure(name, bases, pipeline):
    """The same bytes again, whatever was built in between, and by a pipeline that never built anything else."""
    builder = pipeline(name)
    int8 = _treat(bases[name].layers, INT8, OPTION_KINDS["int8"])
    half = _treat(bases[name].layers, QUANTIZE_OPTIONS["float16"], OPTION_KINDS["float16"])
    graph = GraphTreatment(calibration="mse", quantized_ops=("add", "pool"))
    float_first = builder.build({}, GraphTreatment())
    first = builder.build(int8, graph)
    builder.build(half, GraphTreatment())
    builder.build(int8, GraphTreatment(calibration="percentile"))
    assert builder.build(int8, graph) == first == pipeline(name).build(int8, graph)
    assert builder.build({}, GraphTreatment()) == float_first


def test_preparing_twice_builds_the_same_bytes(sources, schemes, pipeline, bases):
    again = prepare_model(sources["cnn"], random_inputs("cnn", 8))
    int8 = _treat(bases["cnn"].layers, INT8, OPTION_KINDS["int8"])
    assert Pipeline(again, schemes["onnxruntime"]).build(int8, GraphTreatment()) == pipeline("cnn").build(
        int8, GraphTreatment()
    )


def test_ranges_from_elsewhere_are_used_for_their_calibration_only(pipeline):
    builder, other = pipeline("cnn"), pipeline("cnn")
    minmax, mse = GraphTreatment(), GraphTreatment(calibration="mse")
    builder.stage.adopt_ranges(mse, other.stage.ranges(minmax))
    assert builder.build({"fc": INT8}, mse).model == other.build({"fc": INT8}, minmax).model
    assert builder.build({"fc": INT8}, minmax) == other.build({"fc": INT8}, minmax)


def test_an_artifact_states_the_size_and_the_digest_of_its_bytes():
    artifact = Artifact(b"abc")
    assert artifact.size_bytes == 3
    # printf abc | sha256sum
    assert artifact.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
