"""OpenVINO on the CPU."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, SpecError, TrimtabError
from ..hw_profiles.kernels.kernel import Between, KernelTiming, LoweredGraph, Rounds, do_nothing
from ..hw_profiles.profile import HardwareProfile, identify_cpu
from ..hw_profiles.target import OPTION_KINDS, Capabilities, Target
from .openvino_kernels import lower_openvino, time_openvino_kernels
from .openvino_precision import can_pin, check_pins, pin_layers

#: our names of precisions → the plugin's; the first is full precision
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}

#: The activation group sizes that the CPU plugin is asked for. 0 switches dynamic quantisation off; the plugin's
#: default is 32, so it is *on* when nobody asks. A group larger than a layer's depth, or than the block of a
#: block-quantised weight, silently leaves that layer in floating point: the largest integer therefore means off
#: everywhere. Larger groups are faster up to about 128: (128, 384) × (384, 1536) takes 1005 µs without, 514 µs with
#: 32, 424 with 64, 383 with 128, 349 with 384 (OpenVINO 2026.4, AVX512 and AMX Xeon, one thread).
#: All of this holds in float32 only: in bfloat16 and float16 the property changes nothing.
_SMALLEST_GROUP, _LARGEST_GROUP = 32, 128

#: Weights that are codebooks, signs or full of zeros are unpacked when the model is loaded, and so are halves: 128 rows
#: times 384 × 1536 take 1606 µs in float32 and 1653 with 80 % of zeros, in int8 522 and 512 (one thread of an EPYC with
#: AVX512-VNNI, median of 150 runs in turns, OpenVINO 2026.4). The plugin's property
#: CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE works for int8 matrix products on AMX only: with 0.5 instead of 1 the same
#: product takes 478 µs instead of 487, and a dense one 486 instead of 480, so it stays at its default.
_SIZE_ONLY = frozenset({"cluster", "binarize", "sparsify", "float16"})

#: The time of 3 × 3 convolutions by their channels, as a share of that with the last number of each row (same machine,
#: three in a row between 16 channels, processor time, median of 100 or more runs in turns):
#:
#: =========  =======  ========  ====
#: channels   float32  bfloat16  int8
#: =========  =======  ========  ====
#: 8, of 16   0.70     0.75      0.81
#: 24, of 32  0.79     0.86      0.90
#: 28, of 32  0.92     0.96      0.96
#: 48, of 64  0.70     0.75      0.81
#: 56, of 64  0.99     0.95      0.97
#: 60, of 64  1.03     0.99      0.99
#: =========  =======  ========  ====
#:
#: 61 of 64 channels take 1.02 of the time, in int8 1.30, on a Xeon with AMX (the shipped profile). So multiples of 16
#: pay most, multiples of 8 still do where channels are few, and what lies between hardly pays.
_CHANNEL_MULTIPLE = 8

#: Offered nowhere here: float8 codes are converted to floats in operators of their own. 128 rows times 384 × 1536 take
#: 3276 µs, in float32 1750; in bfloat16 2111 instead of 911.
_NEVER = frozenset({"float8"})


class OpenVinoDevice:
    """Runs artifacts in OpenVINO's CPU plugin with a fixed number of threads and one stream."""

    def __init__(self, target: Target) -> None:
        if target.device != "cpu":
            raise SpecError(f"runtime openvino is driven on the devices: cpu; got '{target.device}'")
        self._openvino = _import_openvino()
        self._core = self._openvino.Core()
        self.target = target
        self.capabilities = _find_capabilities(self._openvino, self._core)

    def identify(self) -> HardwareProfile:
        """Returns this machine's processor under this version of OpenVINO."""
        return identify_cpu(self.target, self._openvino.get_version())

    def load(self, artifact: Artifact) -> "OpenVinoExecutable":
        """Compiles an artifact, with the target's batch size fixed where the model leaves only the batch open.

        Raises:
            MeasurementError: the runtime refuses the model, or cannot run in its precisions.
        """
        with _named_refusal():
            return OpenVinoExecutable(self._compiler(artifact)().create_infer_request())

    def lower(self, artifact: Artifact) -> LoweredGraph:
        """Returns the kernels that `load` would make of an artifact; nothing is run.

        Raises:
            MeasurementError: the runtime refuses the model.
        """
        with _named_refusal():
            return lower_openvino(self._compiler(artifact)())

    def time_kernels(
        self, artifact: Artifact, inputs: Mapping[str, np.ndarray], *, runs: int = 20, between: Between = do_nothing
    ) -> list[KernelTiming]:
        """Runs an artifact with the runtime's counters; see `KernelDevice.time_kernels`.

        Raises:
            MeasurementError: the runtime refuses the model, or fails to run it.
        """
        with _named_refusal():
            return time_openvino_kernels(self._compiler(artifact, {"PERF_COUNT": "YES"}), inputs, Rounds(runs, between))

    def _compiler(self, artifact: Artifact, extra: Mapping[str, Any] = MappingProxyType({})) -> Callable[[], Any]:
        """Returns what compiles the artifact, as often as it is called.

        Raises:
            MeasurementError: the runtime cannot run in the artifact's precision, or keep its layers in float32.
        """
        if artifact.precision not in self.capabilities.precisions:
            known = ", ".join(self.capabilities.precisions)
            raise MeasurementError(f"openvino on cpu runs in: {known}; got an artifact for {artifact.precision}")
        model, settings = self._read(artifact), {**self._set_up(artifact), **extra}
        layers = artifact.full_precision if artifact.mixes_precisions else ()
        pinned = pin_layers(self._openvino, model, layers) if layers else {}

        def compile_model() -> Any:
            compiled = self._core.compile_model(model, "CPU", settings)
            if pinned:
                check_pins(compiled, pinned)
            return compiled

        return compile_model

    def _read(self, artifact: Artifact) -> Any:
        model = self._core.read_model(artifact.model)
        shapes = {port.any_name: port.partial_shape for port in model.inputs}
        if not any(shape.is_dynamic for shape in shapes.values()):
            return model
        if any(shape.rank.is_dynamic or any(side.is_dynamic for side in list(shape)[1:]) for shape in shapes.values()):
            return model
        fixed = {name: [self.target.batch_size, *list(shape)[1:]] for name, shape in shapes.items()}
        try:
            model.reshape(fixed)
        except RuntimeError:
            # a reshape that fails half-way may leave other shapes behind: the open batch works just as well
            return self._core.read_model(artifact.model)
        return model

    def _set_up(self, artifact: Artifact) -> dict[str, Any]:
        group_size = find_group_size(artifact.model) if artifact.dynamic_activations else 0
        return {
            "INFERENCE_NUM_THREADS": self.target.threads,
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[artifact.precision],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size,
        }


@contextmanager
def _named_refusal() -> Iterator[None]:
    try:
        yield
    except TrimtabError:
        raise
    except Exception as error:
        raise MeasurementError(f"openvino refuses the model: {error}") from error


class OpenVinoExecutable:
    """An inference request of OpenVINO."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable.run`. The outputs are copies: the request reuses its own memory.

        Raises:
            MeasurementError: the runtime fails; the message carries its own words.
        """
        try:
            results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=False)
            outputs: tuple[np.ndarray, ...] = results.to_tuple()
        except Exception as error:
            raise MeasurementError(f"openvino fails to run the model: {error}") from error
        return list(outputs)


def find_group_size(model: bytes) -> int:
    """Returns the largest activation group that keeps every compressed linear layer quantised dynamically.

    Args:
        model: a serialised ONNX model.

    Returns:
        A multiple of 32 from 32 to 128.
    """
    graph = onnx.load_model_from_string(model).graph
    constants = {constant.name: constant for constant in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    depths = [_LARGEST_GROUP]
    for node in graph.node:
        source = producers.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        dims = _constant_dims(source.input[0], constants, producers)
        if len(dims) < 2:
            continue
        depth = dims[-1] if _attribute(node, "transB") else dims[-2]
        depths.append(_attribute(source, "block_size") or depth)
    return max(_SMALLEST_GROUP, min(depths) // _SMALLEST_GROUP * _SMALLEST_GROUP)


def _constant_dims(name: str, constants: Mapping[str, Any], producers: Mapping[str, Any]) -> list[int]:
    """Returns the sides of a constant, or of what is unpacked from constants; none where that is not seen."""
    if name in constants:
        return list(constants[name].dims)
    node = producers.get(name)
    if node is None:
        return []
    if node.op_type == "Reshape" and node.input[1] in constants:
        return [int(side) for side in numpy_helper.to_array(constants[node.input[1]])]
    position = {"Gather": 1, "Add": 0, "Cast": 0}.get(node.op_type)  # from values to their codes, and on
    return [] if position is None else _constant_dims(node.input[position], constants, producers)


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise SpecError("openvino is not installed; pip install 'trimtab[openvino]'") from error
    return openvino


def _find_capabilities(openvino: Any, core: Any) -> Capabilities:
    accelerated = set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    precisions = ["float32"]
    precisions += [name for name, flag in (("bfloat16", "BF16"), ("float16", "FP16")) if flag in accelerated]
    lower = precisions[1:]
    keeps_single_layers = bool(lower) and all(can_pin(openvino, core, _HINTS[name]) for name in lower)
    refused = _NEVER if keeps_single_layers else _NEVER | {"float32"}
    return Capabilities(
        quantize={option: kinds for option, kinds in OPTION_KINDS.items() if option not in refused},
        precisions=tuple(precisions),
        default_precision=_find_default_precision(core),
        # the plugin fuses GELU and attention itself, at any precision
        fusions=("none",),
        # all-MiniLM-L6-v2, all int8, bfloat16 elsewhere: 5.8 ms with zero point 0, 6.5 ms with any (fp32: 21.3 ms)
        activation_codes="symmetric",
        quantize_conv_outputs=False,
        dynamic_form="weights",
        size_only=_SIZE_ONLY,
        channel_multiple=_CHANNEL_MULTIPLE,
    )


def _find_default_precision(core: Any) -> str:
    """Asks a compiled model: what the plugin picks depends on the processor."""
    tiny = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "tiny",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])],
    )
    model = onnx.helper.make_model(tiny, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    reported = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return next((name for name, hint in _HINTS.items() if hint == reported), "float32")
