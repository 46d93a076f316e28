"""ONNX Runtime on the CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.kernels.kernel import Between, KernelTiming, LoweredGraph, Rounds, do_nothing
from ..hw_profiles.profile import HardwareProfile, identify_cpu
from ..hw_profiles.target import OPTION_KINDS, Capabilities, Target
from .onnxruntime_kernels import lower_onnxruntime, time_onnxruntime_kernels

#: ``int8`` layers run as QLinearConv and QGemm or MatMulInteger, ``int4_weight`` as MatMulNBits, ``int8_weight`` of
#: linear layers over single rows too. What is float is computed in float32, so that int8, float32 and stored halves mix
#: layer by layer without more ado, and ``float32`` has nothing to say. Graphs with ``float8`` are refused: the session
#: makes integer products of them (MatMulIntegerToFloat), and then finds their type wrong (1.31).
#:
#: Size only: halves, codebooks, signs and zeros are unpacked when the model is loaded. 128 rows times 384 × 1536 take
#: 1426 µs in float32 and 1427 with 80 % of zeros, in int8 384 and 380 (one thread of an EPYC with AVX512-VNNI).
#:
#: The time of 3 × 3 convolutions by their channels, as a share of that with the last number of each row (same machine,
#: three in a row between 16 channels, processor time, median of 100 or more runs in turns):
#:
#: =========  =======  ====
#: channels   float32  int8
#: =========  =======  ====
#: 8, of 16   0.68     1.35
#: 24, of 32  1.00     0.86
#: 26, of 32  1.18     1.46
#: 30, of 32  1.42     1.57
#: 48, of 64  0.61     0.68
#: 56, of 64  1.00     0.91
#: 60, of 64  1.01     0.96
#: =========  =======  ====
#:
#: 61 of 64 channels take 1.54 of the time, in int8 1.15, on a Xeon with AMX (the shipped profile). Multiples of 8 cost
#: no more than the next multiple of 16, except 8 channels of int8; multiples of 16 alone would leave a layer of 16
#: channels as it is, in float32 too.
_CAPABILITIES = Capabilities(
    quantize={option: kinds for option, kinds in OPTION_KINDS.items() if option not in ("float8", "float32")},
    fusions=("none", "gelu", "attention", "full"),
    size_only=frozenset({"cluster", "binarize", "sparsify", "float16"}),
    channel_multiple=8,
)

#: Session settings beside the threads.
#: Without spinning: with two threads, the idle pool of one session keeps spinning for a while and takes a core from
#: the other one's, so that of two *equal* models timed in turns one took 326 µs and the other 468 µs (eight 512 × 512
#: matrix products, 2-core Xeon); without it 483 and 486 µs. With one thread it changes nothing.
#: Level 4 (8-bit activations in MatMulNBits) is what a session does when nobody asks; it is stated here so that a
#: later version cannot change what was promised. Levels 0 to 3 keep float32 activations: (1, 384) × (384, 1536)
#: takes 49 µs instead of 20.
_ENTRIES = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
    "session.qdq_matmulnbits_accuracy_level": "4",
}


class OnnxRuntimeDevice:
    """Runs artifacts in ONNX Runtime's CPU provider with a fixed number of threads.

    >>> OnnxRuntimeDevice(Target("onnxruntime")).capabilities.precisions
    ('float32',)
    """

    def __init__(self, target: Target) -> None:
        if target.device != "cpu":
            raise SpecError(f"runtime onnxruntime is driven on the devices: cpu; got '{target.device}'")
        self._onnxruntime = _import_onnxruntime()
        self.target = target
        self.capabilities = _CAPABILITIES

    def identify(self) -> HardwareProfile:
        """Returns this machine's processor under this version of ONNX Runtime."""
        return identify_cpu(self.target, self._onnxruntime.__version__)

    def load(self, artifact: Artifact) -> "OnnxRuntimeExecutable":
        """Loads an artifact, with the target's batch size fixed where the model leaves only the batch open.

        Raises:
            MeasurementError: the runtime refuses the model, or cannot run in its precision.
        """
        if artifact.precision not in self.capabilities.precisions:
            known = ", ".join(self.capabilities.precisions)
            raise MeasurementError(f"onnxruntime on cpu runs in: {known}; got an artifact for {artifact.precision}")
        try:
            session = self._onnxruntime.InferenceSession(
                artifact.model, self._set_up(artifact), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise MeasurementError(f"onnxruntime refuses the model: {error}") from error
        return OnnxRuntimeExecutable(session)

    def lower(self, artifact: Artifact) -> LoweredGraph:
        """Returns the kernels that `load` would make of an artifact; nothing is run.

        Raises:
            MeasurementError: the runtime refuses the model.
        """
        return lower_onnxruntime(self._onnxruntime, artifact.model, self._set_up(artifact))

    def time_kernels(
        self, artifact: Artifact, inputs: Mapping[str, np.ndarray], *, runs: int = 20, between: Between = do_nothing
    ) -> list[KernelTiming]:
        """Runs an artifact with the runtime's profiler; see `KernelDevice.time_kernels`.

        Raises:
            MeasurementError: the runtime refuses the model, or fails to run it.
        """
        options = self._set_up(artifact)
        return time_onnxruntime_kernels(
            self._onnxruntime, artifact.model, options, inputs=inputs, rounds=Rounds(runs, between)
        )

    def _set_up(self, artifact: Artifact) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.target.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors only
        for name, value in _ENTRIES.items():
            options.add_session_config_entry(name, value)
        for name in find_open_batch(artifact.model):
            options.add_free_dimension_override_by_name(name, self.target.batch_size)
        return options


class OnnxRuntimeExecutable:
    """A session of ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable.run`.

        Raises:
            MeasurementError: the runtime fails; the message carries its own words.
        """
        try:
            outputs: list[np.ndarray] = self._session.run(None, inputs)
        except Exception as error:
            raise MeasurementError(f"onnxruntime fails to run the model: {error}") from error
        return outputs


def find_open_batch(model: bytes) -> tuple[str, ...]:
    """Returns the names that the first sides of a model's inputs bear, where nothing but those sides is open.

    Args:
        model: a serialised ONNX model.
    """
    try:
        graph = onnx.load_model_from_string(model).graph
    except DecodeError:
        return ()  # the runtime refuses it in its own words
    constants = {tensor.name for tensor in graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in constants]
    if any(not side.HasField("dim_value") for shape in shapes for side in shape[1:]):
        return ()
    return tuple({shape[0].dim_param: None for shape in shapes if shape and shape[0].dim_param})


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise SpecError("onnxruntime is not installed; pip install onnxruntime") from error
    return onnxruntime
