"""Packed weights in whole models: both runtimes fold them, and run the kernels and numbers of unpacked ones."""

import itertools

import numpy as np
import onnx
import pytest
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.testing import random_inputs, run_artifact
from trimtab.compressors.weights import packing
from trimtab.compressors.weights.unpacking import unpack_constants
from trimtab.evaluators.device import build_device
from trimtab.evaluators.tensorrt_device import tensorrt_capabilities
from trimtab.evaluators.tensorrt_rules import check_tensorrt_rules
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import Treatment

_INT8 = {"weight_dtype": "int8", "activation_dtype": "int8"}
_FEW = {
    "codes": {"clusters": 16},
    "groups": {"clusters": 4, "cluster_scope": "group"},
    "signs": {"binary": "binary"},
    "three values": {"binary": "ternary"},
    "mask": {"pattern": "1:4"},
    "mask of codes": {"clusters": 12, "sparsity": 0.9},
}
_STORED = {
    "float32": {},
    "float16": {"weight_dtype": "float16"},
    "int8": _INT8,
    "int8 weight": {"weight_dtype": "int8"},
    "int8 dynamic": {**_INT8, "activation_range": "dynamic"},
}
_CASES = [(name, how) for name in ("cnn", "transformer") for how in _STORED if (name, how) != ("cnn", "int8 dynamic")]


@pytest.fixture(scope="module")
def devices():
    return {runtime: build_device(Target(runtime, batch_size=4)) for runtime in ("onnxruntime", "openvino")}


@pytest.fixture
def build(prepared, schemes, monkeypatch):
    """Returns a function: (model name, runtime, layer → treatment, bytes of a node) → artifact; 0 packs what can be."""

    def build(name, runtime, treatments, node_bytes=0):
        costs = {form: 0 if form == "dense" else node_bytes for form in packing._NODE_BYTES}
        monkeypatch.setattr(packing, "_NODE_BYTES", costs)
        return Pipeline(prepared[name], schemes[runtime]).build(treatments, GraphTreatment())

    return build


@pytest.fixture
def layers(prepared):
    """Model name → layers with products."""
    return {name: [x.name for x in model.layers if x.kind != "embedding"] for name, model in prepared.items()}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("name", "how"), _CASES)
def test_packed_weights_run_the_kernels_and_give_the_numbers_of_unpacked_ones(
    name, how, runtime, build, layers, devices
):
    """The layers take turns in the forms."""
    few = itertools.cycle(_FEW.values())
    treatments = {layer: Treatment(**next(few), **_STORED[how]) for layer in layers[name]}
    packed, plain = build(name, runtime, treatments), build(name, runtime, treatments, node_bytes=10**9)
    assert not _unpacking(plain)
    assert {"Gather", "Add", "MatMul"} <= _unpacking(packed)
    device, inputs = devices[runtime], random_inputs(name, 4, seed=2)
    assert [step.kernel for step in device.lower(packed).steps] == [step.kernel for step in device.lower(plain).steps]
    for got, want in zip(device.load(packed).run(inputs), device.load(plain).run(inputs), strict=True):
        # halves are those of the codebook instead of those of the codebook times the scale of each output
        tolerance = 2e-3 * np.abs(want).max() if how == "float16" else 0
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def _unpacking(artifact):
    """Types of the nodes without a name: those that unpack."""
    return {node.op_type for node in onnx.load_model_from_string(artifact.model).graph.node if not node.name}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_four_bits_for_a_weight_run_as_plain_int8(runtime, build, layers, devices):
    clustered, plain = (
        build("cnn", runtime, dict.fromkeys(layers["cnn"], treatment))
        for treatment in (Treatment(clusters=16, **_INT8), Treatment(**_INT8))
    )
    # a linear layer whose outputs have one scale is one for OpenVINO too: the same kernel reads one number for five
    kernels = [
        [(step.kernel.op, step.kernel.implementation, step.kernel.outputs) for step in devices[runtime].lower(a).steps]
        for a in (clustered, plain)
    ]
    assert kernels[0] == kernels[1]
    integers = {"onnxruntime": ("com.microsoft.QLinearConv", ""), "openvino": ("Convolution", "brgconv_avx512_I8")}[
        runtime
    ]
    assert sum(kernel[:2] == integers for kernel in kernels[0]) >= 3
    assert "Gather" in _unpacking(clustered)


def test_a_small_weight_is_not_packed(prepared, schemes):
    """The stem's 216 weights: what unpacks 108 bytes of codes takes more than the 108 that they save."""
    artifact = Pipeline(prepared["cnn"], schemes["onnxruntime"]).build(
        {"stem.0": Treatment(clusters=16, weight_dtype="int8")}, GraphTreatment()
    )
    assert not _unpacking(artifact)


@pytest.mark.parametrize("few", _FEW)
def test_a_weight_that_two_layers_share_is_packed_once(few, build):
    artifact = build("transformer", "onnxruntime", {"twice": Treatment(**_FEW[few], weight_dtype="int8")})
    graph = onnx.load_model_from_string(artifact.model).graph
    finals = [node.output[0] for node in graph.node if node.op_type == "Gather" and not node.name]
    assert finals.count("twice.weight_int8") == 1
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == 2


@pytest.mark.parametrize(("name", "how"), _CASES)
def test_unpacked_by_hand_a_model_is_the_same_with_nothing_left_to_fold(name, how, build, layers):
    few = itertools.cycle(_FEW.values())
    packed = build(name, "onnxruntime", {layer: Treatment(**next(few), **_STORED[how]) for layer in layers[name]})
    unpacked = Artifact(unpack_constants(packed.model))
    assert not _unpacking(unpacked)
    assert unpack_constants(unpacked.model) == unpacked.model
    inputs = random_inputs(name, 4, seed=2)
    for got, want in zip(run_artifact(unpacked, inputs), run_artifact(packed, inputs), strict=True):
        np.testing.assert_array_equal(got, want)


def test_tensorrt_takes_packed_codes_once_they_are_unpacked(prepared, layers, monkeypatch):
    monkeypatch.setattr(packing, "_NODE_BYTES", dict.fromkeys(packing._NODE_BYTES, 0))
    pipeline = Pipeline(prepared["cnn"], tensorrt_capabilities())
    model = pipeline.build(dict.fromkeys(layers["cnn"], Treatment(clusters=16, **_INT8)), GraphTreatment()).model
    assert check_tensorrt_rules(model)
    assert not check_tensorrt_rules(unpack_constants(model))
