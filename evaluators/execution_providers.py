"""ONNX Runtime's execution providers under the names that a target's ``device`` gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from ..core.errors import MeasurementError, SpecError
from ..core.names import describe_unknown
from ..hw_profiles.target import Capabilities, Target
from .tensorrt_device import tensorrt_capabilities

_EVERY_KIND = frozenset({"conv", "depthwise_conv", "linear", "embedding"})
_INTEGER_KINDS = frozenset({"conv", "depthwise_conv", "linear"})

#: No figures of ours stand behind the capabilities of these providers, for none of them runs on the machines that
#: Trimtab was measured on. They say what the providers document: which of them have integer kernels for explicit
#: QDQ, and with which codes. The rest computes in floating point and is offered smaller files only.
#: ONNX Runtime computes what depends on constants alone before a provider sees the graph, which unpacks such weights.
_SIZE_ONLY = frozenset({"cluster", "binarize", "float16"})
_FLOAT = Capabilities(quantize={"none": _EVERY_KIND, "float16": _EVERY_KIND}, size_only=_SIZE_ONLY)
_QDQ = Capabilities(quantize={"none": _EVERY_KIND, "int8": _INTEGER_KINDS}, size_only=_SIZE_ONLY)
_QDQ_SYMMETRIC = Capabilities(
    quantize={"none": _EVERY_KIND, "int8": _INTEGER_KINDS},
    activation_codes="symmetric",
    quantize_conv_outputs=False,
    size_only=_SIZE_ONLY,
)


@dataclass(frozen=True)
class ExecutionProvider:
    """One execution provider."""

    #: as ONNX Runtime calls it
    name: str
    #: what has it
    package: str
    capabilities: Capabilities = _FLOAT
    #: whether it runs on an NVIDIA GPU, which then is the device that results belong to
    is_nvidia: bool = False
    #: option of the provider that takes the number of threads
    threads_option: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def options_for(self, target: Target) -> dict[str, str]:
        """Returns the provider's options for a target."""
        threads = {self.threads_option: str(target.threads)} if self.threads_option else {}
        return {**self.options, **threads}


_OWN_BUILD = "a build of ONNX Runtime with"

#: device of a target → provider; ``cpu`` is `trimtab.evaluators.onnxruntime_device`'s own
PROVIDERS: dict[str, ExecutionProvider] = {
    "acl": ExecutionProvider("ACLExecutionProvider", f"{_OWN_BUILD} --use_acl"),
    "cann": ExecutionProvider("CANNExecutionProvider", "onnxruntime-cann"),
    "coreml": ExecutionProvider("CoreMLExecutionProvider", "onnxruntime on macOS"),
    "cuda": ExecutionProvider("CUDAExecutionProvider", "onnxruntime-gpu", is_nvidia=True),
    "dml": ExecutionProvider("DmlExecutionProvider", "onnxruntime-directml"),
    "dnnl": ExecutionProvider("DnnlExecutionProvider", f"{_OWN_BUILD} --use_dnnl"),
    "migraphx": ExecutionProvider("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "openvino": ExecutionProvider(
        "OpenVINOExecutionProvider", "onnxruntime-openvino", _QDQ_SYMMETRIC, threads_option="num_of_threads",
        options={"device_type": "CPU", "num_streams": "1"},
    ),
    "qnn": ExecutionProvider("QNNExecutionProvider", "onnxruntime-qnn", _QDQ),
    "tensorrt": ExecutionProvider(
        "TensorrtExecutionProvider", "onnxruntime-gpu and TensorRT", tensorrt_capabilities(), is_nvidia=True
    ),
    "tensorrt_rtx": ExecutionProvider(
        "NvTensorRTRTXExecutionProvider", f"{_OWN_BUILD} --use_nv_tensorrt_rtx", tensorrt_capabilities(), is_nvidia=True
    ),
    "vitisai": ExecutionProvider("VitisAIExecutionProvider", "onnxruntime-vitisai", _QDQ),
    "webgpu": ExecutionProvider("WebGpuExecutionProvider", f"{_OWN_BUILD} --use_webgpu"),
    "xnnpack": ExecutionProvider(
        "XnnpackExecutionProvider", f"{_OWN_BUILD} --use_xnnpack", _QDQ, threads_option="intra_op_num_threads"
    ),
}  # fmt: skip

#: session entry that lets a session say which provider got which nodes (ONNX Runtime 1.24 and later)
RECORD_ENTRY = "session.record_ep_graph_assignment_info"


def find_provider(onnxruntime: Any, target: Target) -> ExecutionProvider:
    """Returns the provider of a target's device, once a session with it has been opened.

    Raises:
        SpecError: the name is unknown, the installed build lacks the provider, or it does not start here.
    """
    if target.device not in PROVIDERS:
        raise SpecError(describe_unknown("onnxruntime device", target.device, ["cpu", *PROVIDERS]))
    provider = PROVIDERS[target.device]
    available = onnxruntime.get_available_providers()
    if provider.name not in available:
        names = [name for name, known in PROVIDERS.items() if known.name in available]
        raise SpecError(
            f"this onnxruntime {onnxruntime.__version__} is built without the {provider.name} of device "
            f"{target.device}; it has the devices {', '.join(['cpu', *names])}; what has it: {provider.package}"
        )
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = open_session(onnxruntime, _tiny_model(), options, (provider, target))
    except Exception as error:
        raise SpecError(f"the {provider.name} does not start on this machine: {error}") from error
    if provider.name not in session.get_providers():
        raise SpecError(f"the {provider.name} does not start on this machine: is its driver there, and its device?")
    return provider


def open_session(
    onnxruntime: Any, model: bytes, options: Any, place: tuple[ExecutionProvider, Target]
) -> Any:  # onnxruntime.InferenceSession
    """Opens a session with the provider first, and the CPU for what it leaves."""
    provider, target = place
    chosen = [(provider.name, provider.options_for(target)), "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model, options, providers=chosen)


def require_use(session: Any, provider: ExecutionProvider) -> None:
    """Checks that a session runs at least a part of its model in the provider.

    Raises:
        MeasurementError: it runs none of it there, but fell back to the CPU.
    """
    if provider.name not in session.get_providers():
        raise MeasurementError(f"onnxruntime fell back to the CPU: the {provider.name} took no session")
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return  # older than 1.24
    if not any(part.ep_name == provider.name for part in session.get_provider_graph_assignment_info()):
        raise MeasurementError(f"onnxruntime runs no node of the model in the {provider.name}, but all on the CPU")


def _tiny_model() -> bytes:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "tiny",
        [value("x", onnx.TensorProto.FLOAT, [1, 4])],
        [value("y", onnx.TensorProto.FLOAT, [1, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
