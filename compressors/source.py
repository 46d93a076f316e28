"""Where a model comes from: a callable that returns an ``nn.Module``, the module itself, or an ``.onnx`` file."""

import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..core.errors import ModelError
from ..core.imports import import_object

_log = logging.getLogger(__name__)

#: ONNX files larger than this are refused; protobuf cannot hold more in one message
MAX_MODEL_BYTES = 2**31 - 1

#: the TorchScript exporter's newest opset; see docs/adr/0002
_OPSET = 17


@dataclass(frozen=True)
class TorchOrigin:
    """The torch module that a model comes from: what pruning and training start with."""

    #: an ``nn.Module`` in eval mode
    module: Any
    #: forward argument → example tensor, (batch, …)
    example_inputs: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSource:
    """A model as ONNX, with what is known of its origin."""

    #: serialised ONNX as exported or read, weights inside
    onnx_bytes: bytes
    #: torch parameter name → float32 array; empty for an ``.onnx`` input
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: model input name → (1, …) array that the model accepts
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: the torch module; None for an ``.onnx`` input
    origin: TorchOrigin | None = None
    #: layer → (n_outputs,) float32 steps of its int8 weight that training has learned
    learned_steps: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: layer → (low, high) of its quantised input that training has learned
    learned_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: layer → the two values of its binary input that training has learned
    learned_levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def load_source(model: Any) -> ModelSource:
    """Loads a model.

    Args:
        model: ``module:callable`` or the callable itself (returning an ``nn.Module``, or the pair of an
            ``nn.Module`` and its example inputs), an ``nn.Module`` with an attribute ``example_inputs``,
            or the path of an ``.onnx`` file.

    Raises:
        ModelError: the model cannot be found, read or exported; the message says what to change.
    """
    if isinstance(model, str | Path) and str(model).endswith(".onnx"):
        content = _read_onnx(Path(model))
        return ModelSource(content, sample=_blank_sample(content))
    if isinstance(model, str | Path):
        model = import_object(str(model), noun="model")
    found = model
    if callable(model) and not hasattr(model, "named_parameters"):
        try:
            found = model()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the model's callable failed: {error!r}") from error
    module, example_inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not hasattr(module, "named_parameters"):
        raise ModelError(f"the model must be an nn.Module or an .onnx path, got {type(module).__name__}")
    if example_inputs is None:
        example_inputs = getattr(module, "example_inputs", None)
    return export_module(module, example_inputs)


def _read_onnx(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"model {path} does not exist")
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=False)
    except Exception as error:
        raise ModelError(f"model {path} is not a valid ONNX file: {error}") from error
    if proto.ByteSize() > MAX_MODEL_BYTES:
        raise ModelError(f"model {path} has {proto.ByteSize()} bytes; at most {MAX_MODEL_BYTES} are supported")
    content: bytes = proto.SerializeToString()
    return content


def _blank_sample(content: bytes) -> dict[str, np.ndarray]:
    """Returns zeros in the shape of the model's inputs; open dimensions become 1."""
    graph = onnx.load_from_string(content).graph
    constants = {tensor.name for tensor in graph.initializer}
    return {
        value.name: np.zeros(
            [max(side.dim_value, 1) for side in value.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in graph.input
        if value.name not in constants
    }


def export_module(module: Any, example_inputs: Any) -> ModelSource:
    """Exports an ``nn.Module``; its mode is left as it was.

    Args:
        module: the module.
        example_inputs: forward argument → (batch, …) tensor, or the tensors in the order of the arguments.

    Raises:
        ModelError: it cannot be exported.
    """
    import torch

    inputs = _named_inputs(module, example_inputs)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _export_either_way(module, inputs)
    finally:
        module.train(was_training)
    parameters = {name: value.detach().cpu().float().numpy() for name, value in module.named_parameters()}
    sample = {name: tensor[:1].detach().cpu().numpy() for name, tensor in inputs.items()}
    return ModelSource(content, parameters, sample, TorchOrigin(module, inputs))


def _named_inputs(module: Any, example_inputs: Any) -> dict[str, Any]:
    """Returns forward-argument name → example tensor."""
    import inspect

    if example_inputs is None:
        raise ModelError(
            "the model has no example inputs; set model.example_inputs to a dict of forward argument → tensor, "
            "or return (model, example_inputs)"
        )
    if isinstance(example_inputs, Mapping):
        return dict(example_inputs)
    values = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    names = list(inspect.signature(module.forward).parameters)
    if len(values) > len(names):
        raise ModelError(f"the model takes {len(names)} inputs ({', '.join(names)}), got {len(values)} example inputs")
    return dict(zip(names, values, strict=False))


def _export_either_way(module: Any, inputs: dict[str, Any]) -> bytes:
    """Exports with the TorchScript exporter, and with torch.export where that one fails (docs/adr/0002)."""
    first_error: Exception
    try:
        return _export_torchscript(module, inputs)
    except Exception as error:  # exporters raise anything
        _log.info("the TorchScript exporter failed (%s); trying torch.export", _first_line(error))
        first_error = error
    try:
        return _export_dynamo(module, inputs)
    except Exception as error:
        raise ModelError(
            f"the model cannot be exported to ONNX; TorchScript: {_first_line(first_error)}; "
            f"torch.export: {_first_line(error)}"
        ) from error


def _export_torchscript(module: Any, inputs: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        kwargs=inputs,
        f=buffer,
        dynamo=False,
        opset_version=_OPSET,
        input_names=list(inputs),
        dynamic_axes={name: {0: "batch"} for name in inputs},
    )
    return buffer.getvalue()


def _export_dynamo(module: Any, inputs: dict[str, Any]) -> bytes:
    import torch

    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        module,
        kwargs=inputs,
        dynamo=True,
        input_names=list(inputs),
        dynamic_shapes={name: {0: batch} for name in inputs},
        verbose=False,
    )
    content: bytes = program.model_proto.SerializeToString()
    return content


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
