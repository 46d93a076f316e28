"""From ONNX to a TensorRT engine, and the engine as something that runs on torch's CUDA tensors.

Imports TensorRT: only `trimtab.evaluators.tensorrt_device` imports this file, once it has seen that it is there.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tensorrt as trt
import torch
from filelock import FileLock

from ..core.errors import MeasurementError
from ..core.files import write_bytes
from .graph_inputs import GraphInput
from .torch_operators import Tensor

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: For open sides besides the batch: the length that the engine is tuned for, and the longest that it takes.
_USUAL_LENGTH, _LONGEST = 128, 512

#: how long to wait for another process that writes the timing cache
_LOCK_TIMEOUT_S = 60.0

#: our names of precisions → the builder's flag, in releases that choose precisions themselves (10)
_PRECISION_FLAGS = {"float16": "FP16", "bfloat16": "BF16"}

#: TensorRT's element type, by its name → torch's
_DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8, "UINT8": torch.uint8,
    "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class EngineOrder:
    """What an engine is built for."""

    #: samples per run; the engine takes no other number where the model leaves the batch open
    batch_size: int
    #: float32, or what the builder may use besides
    precision: str
    inputs: tuple[GraphInput, ...]
    #: what activations are quantised to: int8, float8 or both
    codes: frozenset[str]
    #: where measured times of kernels are kept between builds; one file per GPU and version
    timing_cache: Path


class _Listener(trt.ILogger):
    """Keeps errors for our own messages; passes the rest to logging."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Takes one message of TensorRT."""
        if int(severity) <= int(trt.ILogger.ERROR):
            self.errors.append(msg)
        _log.debug("%s", msg)


class _Stopwatch(trt.IProfiler):
    """Adds up the time of each layer."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        #: layer name → seconds
        self.totals_s: dict[str, float] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Takes the time of one layer in one run."""
        self.totals_s[layer_name] = self.totals_s.get(layer_name, 0.0) + ms / 1e3


def offers_precision(name: str) -> bool:
    """Whether this release builds in a precision; from 11 on, networks are strongly typed and none is chosen."""
    return name == "float32" or hasattr(trt.BuilderFlag, _PRECISION_FLAGS[name])


def build_engine(model: bytes, order: EngineOrder) -> "Engine":
    """Parses a model and builds its engine; what was timed is kept for the next build.

    Raises:
        MeasurementError: TensorRT refuses the model; the message carries its words.
    """
    listener = _Listener()
    builder = trt.Builder(listener)
    network = builder.create_network(_network_flags(order.precision))
    parser = trt.OnnxParser(network, listener)
    is_parsed = bool(parser.parse(model))  # in the stubs, bool is TensorRT's data type of this name
    if not is_parsed:
        errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise MeasurementError(f"tensorrt refuses the model: {'; '.join(errors) or _last(listener)}")
    config = builder.create_builder_config()
    _set_up(config, order)
    profile = _make_profile(builder, order)
    if profile is not None:
        config.add_optimization_profile(profile)
    lock = FileLock(f"{order.timing_cache}.lock")
    order.timing_cache.parent.mkdir(parents=True, exist_ok=True)
    with lock.acquire(timeout=_LOCK_TIMEOUT_S):
        _load_timings(config, order.timing_cache)
    plan = _require(builder.build_serialized_network(network, config), "cannot build the model", listener)
    with lock.acquire(timeout=_LOCK_TIMEOUT_S):
        _save_timings(config, order.timing_cache)
    loaded = trt.Runtime(listener).deserialize_cuda_engine(plan)
    engine = _require(loaded, "cannot load the engine that it built", listener)
    return Engine(engine, [value.name for value in order.inputs], listener)


def _network_flags(precision: str) -> int:
    """Strongly typed where nothing is left to choose: int8 is then exactly where the graph says so."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 1 << int(flag) if flag is not None and precision == "float32" else 0


def _set_up(config: trt.IBuilderConfig, order: EngineOrder) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # TF32 keeps 10 bits of the factors: not the precision that was asked for
    config.clear_flag(trt.BuilderFlag.TF32)
    # lets the builder time the kernels for zeros in the pattern 2:4 where it finds them
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if order.precision != "float32":
        config.set_flag(getattr(trt.BuilderFlag, _PRECISION_FLAGS[order.precision]))
        # a weakly typed network runs QuantizeLinear and DequantizeLinear with one of these flags only
        config.set_flag(trt.BuilderFlag.FP8 if "float8" in order.codes else trt.BuilderFlag.INT8)


def _make_profile(builder: trt.Builder, order: EngineOrder) -> trt.IOptimizationProfile | None:
    """The shapes of inputs with open sides; None where there are none."""
    open_inputs = [value for value in order.inputs if None in value.shape]
    if not open_inputs:
        return None
    profile = builder.create_optimization_profile()
    for value in open_inputs:
        shapes = [
            trt.Dims([_fill(side, place, order.batch_size, length) for place, side in enumerate(value.shape)])
            for length in (1, _USUAL_LENGTH, _LONGEST)
        ]
        profile.set_shape(value.name, *shapes)
    return profile


def _fill(side: int | None, place: int, batch_size: int, length: int) -> int:
    if side is not None:
        return side
    return batch_size if place == 0 else length


def _load_timings(config: trt.IBuilderConfig, path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    is_taken = bool(config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False))
    if not is_taken:  # another version's, or damaged
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timings(config: trt.IBuilderConfig, path: Path) -> None:
    """Writes what is known now, together with what another process wrote meanwhile."""
    timings = config.get_timing_cache()
    if path.exists():
        timings.combine(config.create_timing_cache(path.read_bytes()), ignore_mismatch=False)
    content = bytes(memoryview(timings.serialize()))
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)


def _require(made: T | None, complaint: str, listener: _Listener) -> T:
    """Returns what TensorRT made; it makes None where it fails, whatever its types say."""
    if made is None:
        raise MeasurementError(f"tensorrt {complaint}: {_last(listener)}")
    return made


def _last(listener: _Listener) -> str:
    return listener.errors[-1] if listener.errors else "it gives no reason"


class Engine:
    """An engine with one execution context: torch tensors on the GPU in, torch tensors on the GPU out."""

    def __init__(self, engine: trt.ICudaEngine, input_names: Sequence[str], listener: _Listener) -> None:
        self._engine = engine
        self._context = _require(engine.create_execution_context(), "cannot run the model", listener)
        self._listener = listener
        self._input_names = list(input_names)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._output_names = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Starts one run on torch's current stream, and does not wait for it.

        Args:
            inputs: contiguous CUDA tensors in the order of the model's inputs; they are read in place.

        Raises:
            MeasurementError: TensorRT takes no inputs of these shapes, or fails.
        """
        context = self._context
        for name, tensor in zip(self._input_names, inputs, strict=True):
            is_taken = bool(context.set_input_shape(name, tuple(tensor.shape)))
            if not is_taken:
                raise MeasurementError(f"tensorrt takes no input {name} of shape {tuple(tensor.shape)}: {self._why()}")
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for name in self._output_names:
            dtype = _DTYPES[self._engine.get_tensor_dtype(name).name]
            sides = context.get_tensor_shape(name)
            output = torch.empty([sides[axis] for axis in range(len(sides))], dtype=dtype, device="cuda")
            context.set_tensor_address(name, output.data_ptr())
            outputs.append(output)
        is_started = bool(context.execute_async_v3(torch.cuda.current_stream().cuda_stream))
        if not is_started:
            raise MeasurementError(f"tensorrt fails to run the model: {self._why()}")
        return tuple(outputs)

    def time_layers(self, inputs: Sequence[Tensor], n_runs: int) -> list[tuple[str, float]]:
        """Returns each layer of the engine with its mean seconds, in the order in which they run."""
        watch = _Stopwatch()
        # a context keeps its profiler for good, and a profiler slows it down: so this one is used once
        context, self._context = self._context, self._engine.create_execution_context()
        self._context.profiler = watch
        try:
            for _ in range(n_runs):
                self(*inputs)
            torch.cuda.synchronize()
        finally:
            self._context = context
        return [(name, total_s / n_runs) for name, total_s in watch.totals_s.items()]

    def _why(self) -> str:
        return _last(self._listener)
