"""The split of a model's bytes, against numpy and against the file itself."""

import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, small_transformer
from trimtab.compressors.weights.storage import measure_storage, stored_bytes
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment

#: protobuf's tags and lengths, the name and the dimensions of one constant
MOST_OVERHEAD = 160


@pytest.fixture(scope="module")
def model():
    return prepare_model(load_source(small_transformer()), random_inputs("transformer", 8), fusions=("none",))


@pytest.fixture(scope="module")
def pipeline(model):
    return Pipeline(model, build_device(Target("onnxruntime")).capabilities)


@pytest.fixture(scope="module")
def linears(model):
    return [layer for layer in model.layers if layer.kind == "linear"]


def treated(pipeline, linears, option):
    return pipeline.build({layer.name: QUANTIZE_OPTIONS[option] for layer in linears}, GraphTreatment())


@pytest.mark.parametrize("option", sorted(QUANTIZE_OPTIONS))
def test_the_parts_add_up_to_the_file(pipeline, linears, option):
    artifact = treated(pipeline, linears, option)
    storage = measure_storage(artifact.model)
    assert storage.size_bytes == len(artifact.model)
    assert all(part >= 0 for part in storage.to_json().values())


@pytest.mark.parametrize("option", sorted(QUANTIZE_OPTIONS))
def test_constants_take_what_numpy_says(pipeline, linears, option):
    graph = onnx.load_model_from_string(treated(pipeline, linears, option).model).graph
    for constant in graph.initializer:
        assert stored_bytes(constant) == numpy_helper.to_array(constant).nbytes, constant.name


@pytest.mark.parametrize(
    ("option", "bits"), [("none", 32), ("float16", 16), ("int8", 8), ("int8_dynamic", 8), ("int8_weight", 8)]
)
def test_weights_take_their_bits(pipeline, linears, option, bits):
    weights = sum(math.prod(layer.weight_shape) for layer in linears)
    embedding_bytes = 4 * 50 * 32  # stays in float32
    assert measure_storage(treated(pipeline, linears, option).model).weights == weights * bits // 8 + embedding_bytes


def test_two_int4_codes_share_a_byte(pipeline, linears):
    storage = measure_storage(treated(pipeline, linears, "int4_weight").model)
    # blocks of 32 along the input side, which all layers fill; one float32 scale a block
    codes = sum(math.prod(layer.weight_shape) // 2 for layer in linears)
    blocks = sum(math.prod(layer.weight_shape) // 32 for layer in linears)
    assert storage.weights == codes + 4 * 50 * 32
    assert storage.scales == 4 * blocks


def test_int8_weights_have_a_scale_and_a_zero_point_per_column(pipeline, linears):
    storage = measure_storage(treated(pipeline, linears, "int8_weight").model)
    columns = sum(layer.weight_shape[1] for layer in linears)
    assert (storage.scales, storage.zero_points) == (4 * columns, columns)


_LARGE = [(32, 64), (64, 32)]  # of the linear layers: `up` and `down`


@pytest.mark.parametrize(
    ("treatment", "weights", "scales"),
    [
        # two codes of 16 in a byte, and a codebook of floats
        (Treatment(clusters=16), 32 * 64 // 2 + 16 * 4, 0),
        # eight signs in a byte, two values, and a scale for each column
        (Treatment(binary="binary"), 32 * 64 // 8 + 2 * 4, 4),
        # four codes of 4 in a byte; DequantizeLinear has a scale for each column
        (Treatment(clusters=4, weight_dtype="int8"), 32 * 64 // 4 + 4, 4),
        # a bit for each, what stays after a 0, and an int32 for each 256
        (Treatment(sparsity=0.75, weight_dtype="float16"), 32 * 64 // 8 + 2 * (512 + 1) + 4 * 8, 0),
        (Treatment(pattern="1:4"), 32 * 64 // 8 + 4 * (512 + 1) + 4 * 8, 0),
    ],
    ids=lambda value: value.label if isinstance(value, Treatment) else None,
)
def test_packed_weights_are_weights_and_what_scales_them_are_scales(treatment, weights, scales, pipeline, linears):
    large = [layer for layer in linears if layer.weight_shape in _LARGE]
    assert len(large) == 2
    plain = measure_storage(pipeline.build({}, GraphTreatment()).model)
    packed = measure_storage(pipeline.build({layer.name: treatment for layer in large}, GraphTreatment()).model)
    assert packed.weights - plain.weights == 2 * (weights - 4 * 32 * 64)
    assert packed.scales - plain.scales == scales * (32 + 64)
    assert packed.biases == plain.biases


def test_biases_and_other_constants_are_told_apart():
    weights = {
        "w": np.zeros((4, 6), np.float32), "b": np.zeros(6, np.float32), "table": np.zeros((3, 1), np.float32)
    }  # fmt: skip
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("Max", ["h", "table"], ["y"])]
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]) for name in "xy"]
    arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], arrays)).SerializeToString()
    storage = measure_storage(model)
    assert (storage.weights, storage.biases, storage.others, storage.scales) == (96, 24, 12, 0)


def test_what_protobuf_adds_is_small():
    array = numpy_helper.from_array(np.zeros((100, 100), np.float32), "w")
    assert 0 < array.ByteSize() - stored_bytes(array) < MOST_OVERHEAD


def test_constants_without_raw_bytes_count_as_they_are_stored():
    tensor = helper.make_tensor("w", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    assert not tensor.HasField("raw_data")
    assert 12 <= stored_bytes(tensor) <= 12 + 2  # the tag and the length of a packed field


def test_half_precision_shrinks_the_file_and_not_what_the_runtime_holds(pipeline, linears):
    device = build_device(Target("onnxruntime"))
    held, stored = {}, {}
    for option in ("none", "float16"):
        artifact = treated(pipeline, linears, option)
        held[option] = device.lower(artifact).constant_bytes
        stored[option] = measure_storage(artifact.model).weights
    assert held["float16"] == held["none"]
    assert stored["float16"] < 0.6 * stored["none"]
