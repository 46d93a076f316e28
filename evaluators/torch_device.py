"""PyTorch on the CPU or a CUDA GPU: ``torch`` runs operator by operator, ``torch_compile`` through Inductor."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.profile import HardwareProfile, identify_cpu
from ..hw_profiles.target import Capabilities, Target
from .gpu import identify_gpu
from .graph_inputs import GraphInput, check_inputs

if TYPE_CHECKING:
    from .torch_cuda import CudaExecutable

_DEVICES = ("cpu", "cuda")

#: These are unpacked when the model is loaded, and run as float32 then.
_EVERY_KIND = frozenset({"conv", "depthwise_conv", "linear", "embedding"})
_LINEAR = frozenset({"linear"})
_SMALLER_FILES = {
    "none": _EVERY_KIND, "float16": _EVERY_KIND, "int8_weight": _EVERY_KIND, "int4_weight": _LINEAR,
}  # fmt: skip
_SIZE_ONLY = frozenset({"cluster", "binarize", "sparsify", "float16", "int8_weight", "int4_weight"})

#: Processors that compute in bfloat16. There it is the largest gain, and ``int8`` pays for linear layers alone, because
#: their codes are multiplied as integers while convolutions only act as if (PyTorch 2.13, one thread of an AVX512 and
#: AMX Xeon, shortest of at least 15 runs in turns, ratio to ``torch`` in float32; int8 with the rest in float32):
#:
#: ==================================  =====  ========  ====  ============
#: model, runtime                      fp32   bfloat16  int8  int8_dynamic
#: ==================================  =====  ========  ====  ============
#: BERT 6 × 384, ``torch``             1.00   0.50      0.47  0.93
#: BERT 6 × 384, ``torch_compile``     0.70   0.39      0.36  0.42
#: ViT 12 × 192, ``torch``             1.00   0.63      0.90  1.29
#: MobileNetV2, ``torch``              1.00   0.67      2.09  1.08
#: ResNet-20, ``torch``                1.00   0.98      1.72  1.03
#: ==================================  =====  ========  ====  ============
#:
#: ONNX Runtime in float32 took 0.90, 0.72, 0.32 and 0.37 of ``torch`` for these models.
#: (int8 of MobileNetV2 and ResNet-20 is that of their convolutions.)
_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


class TorchDevice:
    """Runs artifacts in PyTorch; ``compiles`` says whether through Inductor."""

    def __init__(self, target: Target, *, compiles: bool = False) -> None:
        if target.device not in _DEVICES:
            known = ", ".join(_DEVICES)
            raise SpecError(f"runtime {target.runtime} is driven on the devices: {known}; got '{target.device}'")
        self._torch = _import_torch()
        if target.device == "cuda" and not self._torch.cuda.is_available():
            raise SpecError(
                f"device cuda needs a CUDA GPU, and PyTorch {self._torch.__version__} sees none; "
                f"install its CUDA build and the driver, or choose device cpu"
            )
        if compiles and target.device == "cpu":
            _require_compiler()
        self._compiles = compiles
        self.target = target
        self.capabilities = _find_capabilities(target, compiles=compiles)

    def identify(self) -> HardwareProfile:
        """Returns this machine's processor, or its GPU, under this version of PyTorch."""
        if self.target.device == "cuda":
            return identify_gpu(self.target, self._torch.__version__)
        return identify_cpu(self.target, self._torch.__version__)

    def load(self, artifact: Artifact) -> "TorchExecutable | CudaExecutable":
        """Translates an artifact; compiling waits for the first run, which tells the shapes.

        Raises:
            MeasurementError: the model has an operator that is not translated, or cannot run in its precisions.
        """
        if artifact.precision not in self.capabilities.precisions:
            known = ", ".join(self.capabilities.precisions)
            raise MeasurementError(
                f"{self.target.runtime} on {self.target.device} runs in: {known}; got an artifact for "
                f"{artifact.precision}"
            )
        if artifact.mixes_precisions:
            raise MeasurementError(f"{self.target.runtime} computes all that is floating point in one precision")
        from .torch_graph import translate

        model = translate(artifact.model, dtype=getattr(self._torch, artifact.precision))
        if self.target.device == "cuda":
            from .torch_cuda import CudaExecutable

            module = model.module.to("cuda")
            return CudaExecutable(self._compile(module) if self._compiles else module, model.inputs)
        call = self._compile(model.module) if self._compiles else model.module
        return TorchExecutable(call, model.inputs, self.target.threads)

    def _compile(self, module: Any) -> Callable[..., Any]:
        # freezing folds constants and packs weights for oneDNN, without which linear layers are not fused on a CPU
        options = {"freezing": self.target.device == "cpu"}
        compiled: Callable[..., Any] = self._torch.compile(module, fullgraph=True, options=options)
        return compiled


def compiled_device(target: Target) -> TorchDevice:
    """Makes the device of the runtime ``torch_compile``.

    Raises:
        SpecError: as `TorchDevice`, and where Inductor finds no C++ compiler.
    """
    return TorchDevice(target, compiles=True)


class TorchExecutable:
    """A translated model on the CPU."""

    def __init__(self, call: Callable[..., Any], expected: Sequence[GraphInput], n_threads: int) -> None:
        self._call = call
        self._expected = expected
        self._n_threads = n_threads

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable.run`.

        Raises:
            MeasurementError: the inputs are others than the model's, or PyTorch fails; the message carries its words.
        """
        import torch

        check_inputs(self._expected, inputs)
        arrays = [inputs[value.name] for value in self._expected]
        # PyTorch warns of memory that it might write to; it does not
        tensors = [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays]
        try:
            with _threads(self._n_threads), torch.inference_mode():
                return [output.numpy() for output in self._call(*tensors)]
        except Exception as error:  # PyTorch raises many types, and its compiler more
            raise MeasurementError(f"torch fails to run the model: {error}") from error


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """Gives PyTorch this many threads for a while.

    The number is one for the whole process: another thread of this process that uses PyTorch meanwhile has it too.
    """
    import torch

    before = torch.get_num_threads()
    if before == n_threads:
        yield
        return
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise SpecError("torch is not installed; pip install 'trimtab[torch]'") from error
    return torch


def _require_compiler() -> None:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        raise SpecError(f"runtime torch_compile needs a C++ compiler, and there is none of: {', '.join(candidates)}")


def _find_capabilities(target: Target, *, compiles: bool) -> Capabilities:
    if target.device == "cuda":
        # the integer products were not measured on a GPU; the narrow floating points are what its tensor cores are for
        precisions = ("float32", "float16", "bfloat16")
        return Capabilities(quantize=_SMALLER_FILES, precisions=precisions, size_only=_SIZE_ONLY)
    has_bfloat16 = not _BFLOAT16_FLAGS.isdisjoint(identify_cpu(target, "").features)
    offers = {**_SMALLER_FILES, "int8": _LINEAR}
    return Capabilities(
        quantize={**offers, "int8_dynamic": _LINEAR} if compiles else offers,
        precisions=("float32", "bfloat16") if has_bfloat16 else ("float32",),
        quantize_conv_outputs=False,
        size_only=_SIZE_ONLY,
    )
