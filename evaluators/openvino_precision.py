"""Single layers in float32 inside a graph that OpenVINO's CPU plugin computes in bfloat16 or float16.

The plugin lowers every floating-point operator to its precision hint, except those that carry the runtime attribute
``DisablePrecisionConversion``, which it puts on its own account where sums would overflow. Python cannot make one, but
the reader of IR files does, and from there it can be copied. Convolutions keep it. Matrix products lose it

- where the plugin joins them with the Add of their bias into a new operator: a Clamp to the range of float32 in between
  hinders that, and in the end Clamp, Add and activation are fused into the kernel of the product all the same;
- where their weight is packed and unpacked in the kernel, or several small ones in a row become a Subgraph, which
  computes in bfloat16 although it reports f32: both want a constant weight, or a packed one, and find a Clamp instead.
  It is computed when the model is compiled.

Found by trying in OpenVINO 2026.4.1 on a processor with AVX512-BF16, by the outputs and the reported precisions. Two
layers, 384 → 1536 → 384 on 128 rows: 1.61 ms in bfloat16, 2.40 with the first in float32, 3.10 with both, 3.09 in a
graph all of float32.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from ..core.errors import MeasurementError

#: the attribute that keeps an operator as it is, and the one that keeps it from being computed before optimisation
_KEEP, _UNFOLDED = "DisablePrecisionConversion_0", "DisableConstantFolding_0"
_LARGEST = float(np.finfo(np.float32).max)

#: operators that multiply an input with a layer's weight, and what the plugin makes of them
_PRODUCTS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
_RUN_PRODUCTS = frozenset({"Convolution", "FullyConnected", "MatMul"})
_FACTS = ("layerType", "originalLayersNames", "runtimePrecision")

_CARRIER = """<?xml version="1.0"?>
<net name="carrier" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1">
      <data shape="1" element_type="f32"/>
      <output><port id="0" precision="FP32"><dim>1</dim></port></output>
    </layer>
    <layer id="1" name="carrier" type="ReLU" version="opset1">
      <rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:dynamic"/></rt_info>
      <input><port id="0" precision="FP32"><dim>1</dim></port></input>
      <output><port id="1" precision="FP32"><dim>1</dim></port></output>
    </layer>
    <layer id="2" name="y" type="Result" version="opset1">
      <input><port id="0" precision="FP32"><dim>1</dim></port></input>
    </layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
    <edge from-layer="1" from-port="1" to-layer="2" to-port="0"/>
  </edges>
</net>
"""


def pin_layers(openvino: Any, model: Any, layers: Collection[str]) -> dict[str, str]:
    """Changes a model in place so that the CPU plugin computes these layers in float32.

    Args:
        openvino: the module.
        model: an ``openvino.Model`` that was read from ONNX.
        layers: layers' names; see `Artifact.full_precision`.

    Returns:
        Operator's name → layer.

    Raises:
        MeasurementError: this version has no such attribute, or a layer has no convolution or matrix product.
    """
    attribute = _read_attribute(openvino)
    pinned: dict[str, str] = {}
    for node, layer in list(_find_products(model, layers)):
        if node.get_type_name() == "MatMul":
            _replace_product(openvino.opset13, node, attribute)
        else:
            node.set_rt_info(attribute, _KEEP)
        pinned[node.get_friendly_name()] = layer
    missing = sorted(set(layers) - set(pinned.values()))
    if missing:
        raise MeasurementError(
            f"layers that are to stay in float32 have no convolution or matrix product: {', '.join(missing)}"
        )
    return pinned


def check_pins(compiled: Any, pinned: Mapping[str, str]) -> None:
    """Makes sure that a compiled model computes the pinned operators in float32.

    Args:
        compiled: an ``openvino.CompiledModel``.
        pinned: what `pin_layers` returned.

    Raises:
        MeasurementError: the plugin lowers one of them nevertheless, or it cannot be told.
    """
    found: dict[str, set[str]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: str(node.get_rt_info()[key].value) for key in _FACTS}
        if facts["layerType"] in _RUN_PRODUCTS:
            for name in facts["originalLayersNames"].split(","):
                found.setdefault(name, set()).add(facts["runtimePrecision"])
    lowered = sorted({layer for name, layer in pinned.items() if found.get(name) != {"f32"}})
    if lowered:
        raise MeasurementError(f"openvino does not keep these layers in float32: {', '.join(lowered)}")


def can_pin(openvino: Any, core: Any, hint: str) -> bool:
    """Whether the plugin keeps a convolution and a linear layer in float32 under a lower hint, found by trying."""
    model = core.read_model(_trial_model())
    try:
        pinned = pin_layers(openvino, model, ("conv", "linear"))
        check_pins(core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint}), pinned)
    except MeasurementError:
        return False
    return True


def _read_attribute(openvino: Any) -> Any:
    carrier = openvino.Core().read_model(_CARRIER.encode(), b"")
    attributes = next(node.get_rt_info() for node in carrier.get_ops() if node.get_friendly_name() == "carrier")
    if _KEEP not in attributes:
        raise MeasurementError(f"openvino {openvino.get_version()} cannot keep single layers in float32")
    return attributes[_KEEP]


def _find_products(model: Any, layers: Collection[str]) -> Iterator[tuple[Any, str]]:
    """Yields (operator, layer) for what multiplies an input with a layer's weight, however that is unpacked."""
    #: name of what depends on constants alone → the layers whose weights are among them
    owners: dict[str, set[str]] = {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        sources = [value.get_source_output().get_node().get_friendly_name() for value in node.inputs()]
        if node.get_type_name() == "Constant":
            owners[name] = {layer for layer in layers if _is_weight_of(name, layer)}
        elif sources and all(source in owners for source in sources):
            owners[name] = {layer for source in sources for layer in owners[source]}
        elif node.get_type_name() in _PRODUCTS:
            yield from ((node, layer) for layer in sorted(owners.get(sources[1], ())))


def _is_weight_of(constant: str, layer: str) -> bool:
    """Whether a constant holds a layer's weight, or a part of it.

    >>> _is_weight_of("fc.weight_int8", "fc"), _is_weight_of("fc.weight_v.weight", "fc")
    (True, False)
    """
    return re.fullmatch(re.escape(f"{layer}.weight") + r"(?!.*\.weight)(_.*)?", constant) is not None


def _replace_product(operators: Any, product: Any, attribute: Any) -> None:
    """Puts ``Clamp(x · Clamp(weightᵀ)ᵀ)`` in the place of x · weight.

    The weight is turned first, or else the plugin does it in the lower precision.
    """
    attributes, output = product.get_attributes(), product.output(0)
    data, weight = (value.get_source_output() for value in product.inputs())
    if not attributes["transpose_b"]:
        n_axes = len(weight.get_partial_shape())
        axes = np.array([*range(n_axes - 2), n_axes - 1, n_axes - 2])
        weight = operators.transpose(weight, operators.constant(axes)).output(0)
    kept = operators.clamp(weight, -_LARGEST, _LARGEST)
    kept.set_rt_info("", _UNFOLDED)
    successor = operators.matmul(data, kept, attributes["transpose_a"], transpose_b=True)
    for node in (kept, successor):
        node.set_rt_info(attribute, _KEEP)
    successor.set_friendly_name(product.get_friendly_name())
    final = operators.clamp(successor, -_LARGEST, _LARGEST).output(0)
    for reader in list(output.get_target_inputs()):
        reader.replace_source_output(final)
    final.set_names(output.get_names())


def _trial_model() -> bytes:
    """A convolution and a linear layer with biases and activations, and an unmarked layer behind them."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    weights = {
        "conv.weight": np.ones((16, 16, 1, 1)), "conv.bias": np.ones(16), "linear.weight": np.ones((16, 16)),
        "linear.bias": np.ones(16), "last.weight": np.ones((16, 16)),
    }  # fmt: skip
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("MatMul", ["b", "linear.weight"], ["c"]),
            node("Add", ["c", "linear.bias"], ["d"]),
            node("Relu", ["d"], ["e"]),
            node("MatMul", ["e", "last.weight"], ["y"]),
        ],
        "trial",
        [value("x", onnx.TensorProto.FLOAT, [1, 16, 2, 16])],
        [value("y", onnx.TensorProto.FLOAT, [1, 16, 2, 16])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
