"""TensorRT on a CUDA GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from ..compressors.artifact import Artifact
from ..compressors.weights.unpacking import unpack_constants
from ..core.cache import cache_folder
from ..core.errors import MeasurementError, SpecError
from ..core.files import short_digest
from ..hw_profiles.profile import HardwareProfile
from ..hw_profiles.target import Capabilities, Target
from .gpu import identify_gpu
from .graph_inputs import GraphInput, check_inputs, read_inputs
from .tensorrt_rules import check_tensorrt_rules, find_codes

if TYPE_CHECKING:
    from .tensorrt_engine import Engine

#: How many violations of TensorRT's rules a message lists.
_MOST_VIOLATIONS = 3

#: What TensorRT's documentation says of explicit quantisation ("Working with Quantized Types"), not measured by us:
#: codes are signed and symmetric; convolutions and matrix products run as integers where both factors are quantised,
#: with a float bias, and need no quantised output. int8 weights alone, dynamic ranges and MatMulNBits are not there.
#: float8 (E4M3) is quantised the same way from compute capability 8.9 (Ada, Hopper) on; convolutions with groups have
#: no kernels for it. Codebooks, signs and halves are unpacked while the engine is built. Zeros in the pattern 2:4 have
#: kernels of their own, so that sparse weights are not size only. Tensor cores take 16 bytes of channels at a time.
_EVERY_KIND = frozenset({"conv", "depthwise_conv", "linear", "embedding"})
_QUANTIZE = {"none": _EVERY_KIND, "int8": frozenset({"conv", "depthwise_conv", "linear"}), "float16": _EVERY_KIND}
_FLOAT8 = {"float8": frozenset({"conv", "linear"})}
_FIRST_WITH_FLOAT8 = (8, 9)


def tensorrt_capabilities(
    precisions: tuple[str, ...] = ("float32",), *, compute_capability: tuple[int, int] = (0, 0)
) -> Capabilities:
    """Returns what TensorRT accepts, whether or not it is installed.

    Args:
        precisions: what the release builds in.
        compute_capability: of the GPU, which decides on float8.
    """
    return Capabilities(
        quantize={**_QUANTIZE, **_FLOAT8} if compute_capability >= _FIRST_WITH_FLOAT8 else _QUANTIZE,
        precisions=precisions,
        activation_codes="symmetric_signed",
        quantize_conv_outputs=False,
        size_only=frozenset({"cluster", "binarize", "float16"}),
        channel_multiple=16,
    )


class TensorRtDevice:
    """Builds an engine from the explicitly quantised graph and runs it as a CUDA graph; buffers are torch's."""

    def __init__(self, target: Target) -> None:
        self._tensorrt = _import_tensorrt()
        if target.device != "cuda":
            raise SpecError(f"runtime tensorrt is driven on the devices: cuda; got '{target.device}'")
        self._torch = _import_torch()
        if not self._torch.cuda.is_available():
            raise SpecError(
                f"runtime tensorrt needs a CUDA GPU, and PyTorch {self._torch.__version__}, which holds its memory, "
                f"sees none"
            )
        from .tensorrt_engine import offers_precision

        self.target = target
        precisions = [name for name in ("float32", "float16", "bfloat16") if offers_precision(name)]
        found = self._torch.cuda.get_device_capability(0)
        self.capabilities = tensorrt_capabilities(tuple(precisions), compute_capability=found)

    def identify(self) -> HardwareProfile:
        """Returns this machine's GPU under this version of TensorRT."""
        return identify_gpu(self.target, self._tensorrt.__version__)

    def load(self, artifact: Artifact) -> "TensorRtExecutable":
        """Builds the engine of an artifact for the target's batch size.

        Raises:
            MeasurementError: the graph breaks TensorRT's rules, TensorRT refuses it, or the precision is not offered.
        """
        if artifact.precision not in self.capabilities.precisions:
            known = ", ".join(self.capabilities.precisions)
            raise MeasurementError(f"tensorrt runs in: {known}; got an artifact for {artifact.precision}")
        if artifact.mixes_precisions:
            raise MeasurementError("tensorrt is told one precision for all layers, and keeps no single ones in float32")
        try:
            model = unpack_constants(artifact.model)  # weights have to be codes that stand in the file
            inputs = read_inputs(onnx.load_model_from_string(model).graph)
            violations, codes = check_tensorrt_rules(model), find_codes(model)
        except Exception as error:  # protobuf raises several types
            raise MeasurementError(f"tensorrt cannot read the model: {error}") from error
        if violations:
            shown = "; ".join(violations[:_MOST_VIOLATIONS])
            raise MeasurementError(f"the graph breaks {len(violations)} of TensorRT's rules: {shown}")
        if len(codes) > 1 and artifact.precision != "float32":
            raise MeasurementError(f"tensorrt mixes int8 and float8 beside float32 only, got {artifact.precision}")
        from .tensorrt_engine import EngineOrder, build_engine

        order = EngineOrder(self.target.batch_size, artifact.precision, inputs, codes, self._timing_cache())
        return TensorRtExecutable(build_engine(model, order), inputs)

    def _timing_cache(self) -> Path:
        """A file per GPU and version: TensorRT discards the times of others."""
        profile = self.identify()
        fingerprint = short_digest([profile.device, list(profile.features), profile.runtime_version])
        return cache_folder() / "tensorrt" / f"timings-{fingerprint}.bin"


class TensorRtExecutable:
    """An engine; `time_once` times it on the GPU, see `trimtab.evaluators.latency.DeviceTiming`."""

    def __init__(self, engine: "Engine", inputs: tuple[GraphInput, ...]) -> None:
        from .torch_cuda import CudaExecutable

        self._engine = engine
        self._inputs = inputs
        self._replayed = CudaExecutable(engine, inputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch, copies included; see `Executable.run`.

        Raises:
            MeasurementError: the inputs are others than the model's, or TensorRT fails.
        """
        return self._replayed.run(inputs)

    def time_once(self, inputs: Mapping[str, np.ndarray]) -> float:
        """Runs one batch that lies on the GPU already; returns its seconds there.

        Raises:
            MeasurementError: as `run`.
        """
        return self._replayed.time_once(inputs)

    def time_layers(self, inputs: Mapping[str, np.ndarray], *, n_runs: int = 10) -> list[tuple[str, float]]:
        """Returns (layer of the engine, mean seconds) in the order of execution.

        A layer is what TensorRT made of one or more nodes, its kernel; its name lists them.

        Raises:
            MeasurementError: as `run`.
        """
        import torch

        check_inputs(self._inputs, inputs)
        tensors = [torch.from_numpy(np.array(inputs[value.name])).to("cuda") for value in self._inputs]
        return self._engine.time_layers(tensors, n_runs)


def _import_tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise SpecError("tensorrt is not installed; pip install 'trimtab[tensorrt]'") from error
    if not hasattr(tensorrt, "Builder"):  # a folder with type stubs alone imports as an empty package
        raise SpecError("tensorrt is not installed, only its type stubs are; pip install 'trimtab[tensorrt]'")
    return tensorrt


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise SpecError("runtime tensorrt holds its memory in torch; pip install 'trimtab[tensorrt]'") from error
    return torch
