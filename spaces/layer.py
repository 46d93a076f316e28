"""Layers and groups: what a policy speaks about."""

from dataclasses import asdict, dataclass
from typing import Any

from ..core.files import short_digest

#: every kind of layer that can be treated
LAYER_KINDS = ("conv", "depthwise_conv", "linear", "embedding")


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight and the nodes that use it."""

    #: the torch module path where it is known (``layer1.0.conv1``), else the name of the ONNX weight or node
    name: str
    #: one of `LAYER_KINDS`
    kind: str
    #: shape of the weight as the graph stores it
    weight_shape: tuple[int, ...]
    #: shape of the output of the first use; -1 where it depends on the input
    output_shape: tuple[int, ...]
    #: elements of the weight and of the bias
    n_parameters: int
    #: multiply-accumulates for one sample
    macs: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {**asdict(self), "weight_shape": list(self.weight_shape), "output_shape": list(self.output_shape)}


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that must be treated alike, because the runtime or a shared weight ties them."""

    name: str
    layers: tuple[str, ...]


def fingerprint_layers(layers: tuple[Layer, ...]) -> str:
    """Returns a digest of names, kinds and weight shapes: equal after retraining, different after surgery."""
    return short_digest([[layer.name, layer.kind, list(layer.weight_shape)] for layer in layers])
