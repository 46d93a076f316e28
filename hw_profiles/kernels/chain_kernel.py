"""Kernels of a declared fusion rule: one form for those that a graph is lowered to and those that a person writes.

Constants with fewer than two sides (biases, scales, zero points, bounds) are not part of a kernel, nor are attributes
with their default value: nobody who writes a table by hand should have to know them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .kernel import Kernel, Tensor, pack_attributes

#: attribute → what it is where a model does not say (ONNX operators, https://onnx.ai/onnx/operators/)
_DEFAULTS: Mapping[str, Any] = {
    "alpha": 1.0, "auto_pad": "NOTSET", "beta": 1.0, "ceil_mode": 0, "count_include_pad": 0, "group": 1, "keepdims": 1,
    "noop_with_empty_axes": 0, "storage_order": 0, "transA": 0, "transB": 0,
}  # fmt: skip
#: attribute → the number that all of its entries are by default
_UNIFORM_DEFAULTS: Mapping[str, int] = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
#: operators whose window is that of the weight's shape
_WINDOW_IN_WEIGHT = frozenset({"Conv", "ConvInteger", "ConvTranspose", "QLinearConv"})
#: attributes that a chain gives itself
CHAIN_ATTRIBUTES = frozenset({"activation", "fused", "n_fused"})
#: members of a chain that are no activations
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})


def make_chain_kernel(
    chain: Sequence[str], inputs: Sequence[Tensor], outputs: Sequence[Tensor], attributes: Mapping[str, Any]
) -> Kernel:
    """Returns the kernel of a chain of operators.

    Args:
        chain: the operators, the first one giving the kernel its name.
        inputs: all that the chain reads from outside, in the order of its operators.
        outputs: what it leaves behind.
        attributes: of the first operator, as JSON values.
    """
    kept = {name: value for name, value in attributes.items() if not _is_default(chain[0], name, value)}
    if len(chain) > 1:
        kept |= {"fused": "+".join(chain[1:]), "n_fused": len(chain)}
        if chain[-1] not in _BINARY:
            kept["activation"] = chain[-1]
    return Kernel(chain[0], tuple(filter(is_counted, inputs)), tuple(outputs), attributes=pack_attributes(kept))


def is_counted(tensor: Tensor) -> bool:
    """Whether an input is part of a kernel: all but small constants."""
    return not tensor.is_constant or len(tensor.shape) >= 2


def _is_default(operator: str, name: str, value: Any) -> bool:
    if name == "kernel_shape":
        return operator in _WINDOW_IN_WEIGHT
    if name in _UNIFORM_DEFAULTS:
        return isinstance(value, list) and all(side == _UNIFORM_DEFAULTS[name] for side in value)
    return name in _DEFAULTS and bool(value == _DEFAULTS[name])


def describe_chain(kernel: Kernel) -> str:
    """Returns the operators of a kernel as ``Conv+Add+Relu``."""
    fused = kernel.attribute_values.get("fused")
    return f"{kernel.op}+{fused}" if fused else kernel.op
