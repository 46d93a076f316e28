"""Peak memory in a fresh process."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from trimtab.compressors.artifact import Artifact
from trimtab.core.errors import MeasurementError
from trimtab.evaluators.memory import measure_peak_memory
from trimtab.evaluators.testing import example_artifact
from trimtab.hw_profiles.target import Target

WEIGHT_BYTES = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def heavy():
    side = int((WEIGHT_BYTES / 4) ** 0.5)
    weight = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["file", "w"], ["y"])],
        "heavy",
        [helper.make_tensor_value_info("file", onnx.TensorProto.FLOAT, ["batch", side])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", side])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Artifact(model.SerializeToString()), {"file": np.zeros((1, side), np.float32)}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_peak_is_at_least_the_weights_and_not_many_times_as_much(heavy, runtime):
    artifact, inputs = heavy
    peak_bytes = measure_peak_memory(Target(runtime), artifact, inputs, timeout_s=60)
    assert WEIGHT_BYTES <= peak_bytes <= 5 * WEIGHT_BYTES


def test_a_small_model_needs_little():
    inputs = {"x": np.zeros((1, 8), np.float32)}
    peak_bytes = measure_peak_memory(Target("onnxruntime"), example_artifact(), inputs, timeout_s=60)
    assert 0 < peak_bytes < WEIGHT_BYTES


def test_a_refused_model_carries_the_runtimes_words():
    with pytest.raises(MeasurementError, match=r"exit code 1, onnxruntime refuses the model: .*INVALID_PROTOBUF"):
        measure_peak_memory(Target("onnxruntime"), Artifact(b"garbage"), {"x": np.zeros(1)}, timeout_s=60)


def test_a_probe_that_takes_too_long_is_given_up():
    inputs = {"x": np.zeros((1, 8), np.float32)}
    with pytest.raises(MeasurementError, match=r"longer than 0\.01 s"):
        measure_peak_memory(Target("onnxruntime"), example_artifact(), inputs, timeout_s=0.01)
