"""For tests: a device without noise, a small model, and the contract that every device must keep.

`SimulatedDevice` works from a spec, too: ``runtime: trimtab.evaluators.testing:SimulatedDevice``.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError
from ..hw_profiles.kernels.kernel import LoweredGraph
from ..hw_profiles.profile import HardwareProfile
from ..hw_profiles.target import OPTION_KINDS, Capabilities, Target
from .accuracy import run_split
from .dataset import Split
from .device import Device
from .onnxruntime_device import OnnxRuntimeDevice, OnnxRuntimeExecutable

#: Seconds per weight element and batch sample, by the bits of the stored weight. Invented, in plausible proportions:
#: weight-only formats save traffic, integers on both sides save arithmetic as well.
_WEIGHT_S = {32: 1e-9, 16: 0.9e-9, 8: 0.8e-9, 4: 0.6e-9}
_INTEGER_S = 0.3e-9

#: Seconds per operator, and per conversion of an activation to or from integers.
_NODE_S, _CONVERSION_S = 0.2e-6, 2e-6

_WEIGHTED = frozenset({"Conv", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_UNPACKING = frozenset({"DequantizeLinear", "Cast", "Reshape", "Transpose"})
_BITS = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
}


class SimulatedDevice:
    """Computes with ONNX Runtime and states latencies from the graph: the same model always takes the same time.

    >>> device = SimulatedDevice(Target("trimtab.evaluators.testing:SimulatedDevice"))
    >>> executable = device.load(example_artifact())
    >>> executable.simulated_latency_s == device.load(example_artifact()).simulated_latency_s
    True
    """

    def __init__(self, target: Target) -> None:
        # one thread, so that sums are added in one order
        self._runtime = OnnxRuntimeDevice(replace(target, threads=1))
        self.target = target
        self.capabilities = Capabilities(
            quantize={option: kinds for option, kinds in OPTION_KINDS.items() if option not in ("float8", "float32")},
            fusions=("none", "gelu", "attention", "full"),
        )

    def identify(self) -> HardwareProfile:
        """Returns the same profile on every machine."""
        return HardwareProfile("simulated", (), 1, 2**33, self.target.runtime, "1", self.target)

    def load(self, artifact: Artifact) -> "SimulatedExecutable":
        """Loads an artifact; see `Device.load`.

        Raises:
            MeasurementError: ONNX Runtime refuses the model.
        """
        executable = self._runtime.load(artifact)
        return SimulatedExecutable(executable, simulate_latency(artifact.model, self.target.batch_size))

    def lower(self, artifact: Artifact) -> LoweredGraph:
        """Returns the kernels of ONNX Runtime, which computes here; see `LoweringDevice`.

        Raises:
            MeasurementError: ONNX Runtime refuses the model.
        """
        return self._runtime.lower(artifact)


class SimulatedExecutable:
    """Computes with ONNX Runtime and states its latency; see `trimtab.evaluators.latency.SelfTiming`."""

    def __init__(self, executable: OnnxRuntimeExecutable, simulated_latency_s: float) -> None:
        self._executable = executable
        self.simulated_latency_s = simulated_latency_s

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable.run`."""
        return self._executable.run(inputs)


def simulate_latency(model: bytes, batch_size: int) -> float:
    """Returns invented seconds for one batch: a price per operator, per conversion and per element of a weight.

    Weights of integer operators, and of operators whose activation was quantised as well, are cheapest.

    Args:
        model: a serialised ONNX model.
        batch_size: samples per run.
    """
    graph = onnx.load_model_from_string(model).graph
    weights = {weight.name: weight for weight in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    total_s = 0.0
    for node in graph.node:
        sources = [_find_weight(name, producers, weights) for name in node.input]
        if node.op_type in _UNPACKING and sources and sources[0] is not None:
            continue  # unpacked while loading
        total_s += _CONVERSION_S if node.op_type in _CONVERSIONS else _NODE_S
        if node.op_type in _WEIGHTED:
            known = [weight for weight in sources if weight is not None]
            weight = max(known, key=lambda one: math.prod(one.dims), default=None)
            if weight is not None:
                total_s += batch_size * math.prod(weight.dims) * _price(node, weight, producers)
    return total_s


def _find_weight(
    name: str, producers: Mapping[str, onnx.NodeProto], weights: Mapping[str, onnx.TensorProto]
) -> onnx.TensorProto | None:
    while name not in weights:
        node = producers.get(name)
        if node is None or node.op_type not in _UNPACKING:
            return None
        name = node.input[0]
    return weights[name]


def _price(node: onnx.NodeProto, weight: onnx.TensorProto, producers: Mapping[str, onnx.NodeProto]) -> float:
    bits = _BITS.get(weight.data_type, 32)
    source = producers.get(node.input[0])
    is_integer = "Integer" in node.op_type or node.op_type.startswith("QLinear")
    if bits == 8 and (is_integer or (source is not None and source.op_type == "DequantizeLinear")):
        return _INTEGER_S
    return _WEIGHT_S[bits]


def example_artifact(n_features: int = 8, n_classes: int = 3) -> Artifact:
    """Returns the layers ``w1``, a relu and ``w2``: input ``x`` (batch, n_features), output (batch, n_classes)."""
    rng = np.random.default_rng(0)
    hidden = 16
    weights = {
        "w1.weight": rng.standard_normal((n_features, hidden)),
        "b1": rng.standard_normal(hidden),
        "w2.weight": rng.standard_normal((hidden, n_classes)),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1.weight", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2.weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "example",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", n_features])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", n_classes])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Artifact(model.SerializeToString())


def _find_linear_layers(model: bytes) -> tuple[str, ...]:
    """Returns the layers of a serialised ONNX model whose weight ``LAYER.weight`` a matrix product reads."""
    graph = onnx.load_model_from_string(model).graph
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    names = [name for node in products for name in node.input if name.endswith(".weight")]
    return tuple(dict.fromkeys(name.removesuffix(".weight") for name in names))


@dataclass(frozen=True)
class DeviceCase:
    """A device, a model that it must run, and one batch of the target's size for it."""

    device: Device
    artifact: Artifact
    inputs: Mapping[str, np.ndarray]


def check_device(device: Device, artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> None:
    """Runs every check of `DEVICE_CHECKS`.

    Args:
        device: the implementation.
        artifact: a float32 model.
        inputs: input name → (batch, …) array, with the target's batch size.

    Raises:
        AssertionError: the device breaks the contract; the message says how.
    """
    for check in DEVICE_CHECKS:
        check(DeviceCase(device, artifact, inputs))


def outputs_are_finite_batches(case: DeviceCase) -> None:
    """Outputs are arrays with the batch first and hold finite values."""
    batch_size = case.device.target.batch_size
    for array in case.device.load(case.artifact).run(case.inputs):
        _require(isinstance(array, np.ndarray), f"outputs must be arrays, got {type(array)}")
        _require(len(array) == batch_size, f"outputs must begin with the batch of {batch_size}, got {array.shape}")
        _require(bool(np.isfinite(array).all()), "outputs must be finite")


def same_inputs_give_same_outputs(case: DeviceCase) -> None:
    """Two loads and two runs agree to the last bit, or pairing would compare noise."""
    executable = case.device.load(case.artifact)
    first = executable.run(case.inputs)
    for again in (executable.run(case.inputs), case.device.load(case.artifact).run(case.inputs)):
        _require_equal(first, again, "equal inputs must give equal outputs")


def a_run_leaves_its_surroundings_alone(case: DeviceCase) -> None:
    """A run changes neither its inputs nor the outputs of an earlier run, and executables do not meet."""
    executable, other = case.device.load(case.artifact), case.device.load(case.artifact)
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    first = executable.run(inputs)
    kept = [array.copy() for array in first]
    shifted = {name: np.roll(array, 1, axis=-1) for name, array in inputs.items()}
    executable.run(shifted)
    other.run(shifted)
    _require_equal(kept, first, "a later run must not overwrite earlier outputs")
    _require_equal(list(case.inputs.values()), list(inputs.values()), "a run must not change its inputs")
    _require_equal(kept, executable.run(inputs), "a run must not depend on the one before")


def a_partial_batch_scores_like_a_full_one(case: DeviceCase) -> None:
    """A split that does not divide into batches gives every sample's own outputs."""
    executable = case.device.load(case.artifact)
    batch_size = case.device.target.batch_size
    split = Split({name: np.concatenate([array, array[:1]]) for name, array in case.inputs.items()})
    full = executable.run(case.inputs)
    for got, expected in zip(run_split(executable, split, batch_size=batch_size), full, strict=True):
        _require(len(got) == batch_size + 1, f"{batch_size + 1} samples must give as many outputs, got {len(got)}")
        _require(np.allclose(got[-1], expected[0], rtol=1e-4, atol=1e-5), "a sample must not depend on its batch")


def what_cannot_be_run_is_refused(case: DeviceCase) -> None:
    """Garbage, unknown precisions and wrong inputs are refused with MeasurementError."""
    _require_refusal(lambda: case.device.load(Artifact(b"garbage")), "bytes that are no model")
    _require_refusal(lambda: case.device.load(replace(case.artifact, precision="float7")), "an unknown precision")
    executable = case.device.load(case.artifact)
    _require_refusal(lambda: executable.run({"no such input": np.zeros(1)}), "an unknown input")
    executable.run(case.inputs)


def identity_is_stable(case: DeviceCase) -> None:
    """A device says the same of itself every time, and knows its target."""
    profile = case.device.identify()
    _require(profile == case.device.identify(), "identify() must be stable")
    _require(profile.target == case.device.target, "identify() must carry the target")
    _require(bool(profile.runtime_version), "identify() must name the runtime's version")


def capabilities_are_in_the_vocabulary(case: DeviceCase) -> None:
    """What a device offers is what the rest of Trimtab knows."""
    offered = case.device.capabilities
    for option, kinds in offered.quantize.items():
        _require(kinds <= OPTION_KINDS.get(option, frozenset()), f"{option} is not defined for all of {sorted(kinds)}")
    _require("none" in offered.quantize, "layers must be allowed to stay as they are")
    _require(offered.precisions[0] == "float32", f"full precision comes first, got {offered.precisions}")
    _require(offered.default_precision in offered.precisions, f"{offered.default_precision} is not offered")
    _require("none" in offered.fusions, "graphs must be allowed to stay as they are")
    _require(offered.dynamic_form in ("operators", "weights"), f"unknown dynamic form {offered.dynamic_form}")


def every_offered_setting_runs(case: DeviceCase) -> None:
    """Each precision gives nearly what float32 gives, with dynamic activations and with layers that stay in float32."""
    exact = case.device.load(case.artifact).run(case.inputs)
    offered = case.device.capabilities
    pinned = [(), _find_linear_layers(case.artifact.model)] if "linear" in offered.quantize.get("float32", ()) else [()]
    for precision, dynamic, layers in itertools.product(offered.precisions, (False, True), pinned):
        artifact = replace(case.artifact, precision=precision, dynamic_activations=dynamic, full_precision=layers)
        for got, expected in zip(case.device.load(artifact).run(case.inputs), exact, strict=True):
            # bfloat16 keeps 8 bits: 2^-8 per operation, with room for a few operations in a row
            near = np.abs(got - expected).max() <= 0.05 * np.abs(expected).max()
            _require(bool(near), f"{precision} must come near float32")


#: The contract: what every `Device` has to keep. Each takes a `DeviceCase` and raises AssertionError.
DEVICE_CHECKS: tuple[Callable[[DeviceCase], None], ...] = (
    outputs_are_finite_batches,
    same_inputs_give_same_outputs,
    a_run_leaves_its_surroundings_alone,
    a_partial_batch_scores_like_a_full_one,
    what_cannot_be_run_is_refused,
    identity_is_stable,
    capabilities_are_in_the_vocabulary,
    every_offered_setting_runs,
)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _require_equal(expected: list[np.ndarray], actual: list[np.ndarray], message: str) -> None:
    same = [np.array_equal(one, other) for one, other in zip(expected, actual, strict=True)]
    _require(all(same), message)


def _require_refusal(action: Callable[[], object], what: str) -> None:
    try:
        action()
    except MeasurementError:
        return
    raise AssertionError(f"{what} must be refused with MeasurementError")
